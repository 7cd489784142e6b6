"""Scores of the same pairs by our packed forward, and by transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from trainer.checkpoints.load import PackedScorer, load_scorer

DOCUMENTS = [Document(title="river " * size, summary="bridge " * (size // 2)) for size in range(1, 12)]


def plain_scores(model: Any, directory: Path, encoder: PairEncoder) -> Any:
    """Scores by transformers' own forward, of one batch with padding on the right."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="right")
    pairs = [{"input_ids": pair.token_ids.tolist()} for pair in encoder.encode("river bridge", DOCUMENTS)]
    batch = tokenizer.pad(pairs, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.inference_mode():
        return model.eval()(**batch).logits[:, 0].numpy()


def packed_scores(directory: Path) -> Any:
    encoder = PairEncoder.load(directory)
    return PackedScorer(load_scorer(directory)).score(encoder.pack(encoder.encode("river bridge", DOCUMENTS)))
