"""The packed forward: its mask, and its losses as those of each pair alone. Its scores are in test_families.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_llm, training_groups
from trainer.checkpoints.load import load_causal_lm
from trainer.data.pairs import encode_groups
from trainer.packed.forward import IGNORED, MASKED, attention_mask, packed_token_losses
from trainer.training.batches import LanguageCollator


def test_mask_is_block_diagonal_and_finite() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = attention_mask(segments, causal=False, dtype=torch.float16)[0, 0] == 0
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    causal = attention_mask(segments, causal=True, dtype=torch.float16)[0, 0]
    assert (causal == 0).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert (attention_mask(torch.ones(1, 4), causal=False, dtype=torch.float16, reach=2)[0, 0] == 0).tolist() == [
        [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1],
    ]  # fmt: skip
    assert causal.isfinite().all()
    assert causal.min() == MASKED


def test_losses_of_packed_pairs_are_those_of_the_pairs_alone(tmp_path: Path) -> None:
    directory = tiny_llm(tmp_path / "llama")
    encoder, model = PairEncoder.load(directory), load_causal_lm(directory).eval()
    (group,) = training_groups(tmp_path, queries=1, documents=5)
    batch = LanguageCollator(encoder)([group])
    with torch.no_grad():
        losses_RL = packed_token_losses(model, **batch["packed"], labels=batch["labels"])
    assert bool(((losses_RL > 0) == (batch["labels"] != IGNORED)).all())
    total, tokens = torch.zeros(()), 0.0
    for pair, weight in zip(encode_groups(encoder, [group]), group.targets, strict=True):
        is_cut = pair.truncated and len(pair.token_ids) == encoder.config.max_pair_tokens
        ids = torch.from_numpy(pair.token_ids[: -1 if is_cut else None]).long()
        logits = model(ids[None]).logits[0].detach()[pair.document_start - 1 : -1]
        total += weight * F.cross_entropy(logits, ids[pair.document_start :], reduction="sum")
        tokens += weight * (len(ids) - pair.document_start)
    mean = (losses_RL * batch["weights"]).sum() / batch["weights"].sum()
    assert mean == pytest.approx(float(total / tokens), rel=1e-5)
