"""The packed forward: its mask, its scores and its losses are those of each pair alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
)

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from trainer.checkpoints.load import (
    CheckpointError,
    PackedScorer,
    check_packing,
    load_scorer,
)
from trainer.data.records import read_groups
from trainer.packed.forward import IGNORED, MASKED, attention_mask, packed_token_losses
from trainer.training.batches import LanguageCollator, TrainingGroup
from trainer.training.losses import weighted_mean

DOCUMENTS = [Document(title="river " * size, summary="bridge " * (size // 2)) for size in range(1, 20)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "scorer")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "scorer")


def test_mask_is_block_diagonal_and_finite() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = attention_mask(segments, causal=False, dtype=torch.float16)[0, 0] == 0
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    causal = attention_mask(segments, causal=True, dtype=torch.float16)[0, 0]
    assert (causal == 0).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert causal.isfinite().all()
    assert causal.min() == MASKED


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_packed_scores_equal_scores_one_by_one(kind: str, bert: Path, llama: Path) -> None:
    directory = bert if kind == "bert" else llama
    encoder = PairEncoder.load(directory)
    scorer = PackedScorer(load_scorer(directory))
    pairs = encoder.encode("river bridge", DOCUMENTS)
    together = scorer.score(encoder.pack(pairs))
    alone = np.concatenate([scorer.score(encoder.pack(pairs[at : at + 1])) for at in range(len(pairs))])
    assert np.abs(together - alone).max() < 1e-5
    assert together.std() > 1e-3


SMALL: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "initializer_range": 0.2,
}  # fmt: skip


def groups(directory: Path, **size: Any) -> list[TrainingGroup]:
    return [
        TrainingGroup(group.query_id, group.query, group.documents, tuple(map(float, range(len(group.documents)))))
        for group in read_groups(write_groups(directory / "judged.jsonl", **size))
    ]


def test_losses_of_packed_pairs_are_those_of_the_pairs_alone(tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny_llama(tmp_path / "llama"))
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    group = groups(tmp_path, queries=1, documents=5)[0]
    batch = LanguageCollator(encoder)([group])
    with torch.no_grad():
        losses_RL = packed_token_losses(model, **batch["packed"], labels=batch["labels"])
    assert bool(((losses_RL > 0) == (batch["labels"] != IGNORED)).all())
    total = torch.zeros(())
    tokens = 0.0
    for document, weight in zip(group.documents, group.targets, strict=True):
        (pair,) = encoder.encode(group.query, [Document(title=document.title, summary=document.summary)])
        ids = torch.from_numpy(pair.token_ids).long()
        logits = model(ids[None]).logits[0].detach()[pair.document_start - 1 : -1]
        total = total + weight * F.cross_entropy(logits, ids[pair.document_start :], reduction="sum")
        tokens += weight * (len(ids) - pair.document_start)
    assert weighted_mean(losses_RL, batch["weights"]) == pytest.approx(float(total / tokens), rel=1e-5)


def test_next_tokens_of_families_that_cap_or_scale_their_logits(tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny_llama(tmp_path / "llama"))
    make = partial(AutoModelForCausalLM.from_config, attn_implementation="eager")
    small = {name: value for name, value in SMALL.items() if name != "head_dim"}
    check_packing(make(Gemma2Config(**SMALL, final_logit_softcapping=1.0, sliding_window=64)), encoder, "gemma2")
    check_packing(make(GraniteConfig(**small, logits_scaling=8.0)), encoder, "granite")
    with pytest.raises(CheckpointError, match="cohere model differ from scores alone"):
        check_packing(make(CohereConfig(**small, logit_scale=0.5)), encoder, "cohere")
