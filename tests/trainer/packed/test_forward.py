"""The packed forward: its scores, gradients and losses as those of each pair alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding import INPUTS, Document, FlatPairs, Layout, PairEncoder
from tests.support.checkpoints import SMALL, tiny_llm, training_groups
from tests.support.rerankers import tiny_gte, tiny_late
from trainer.checkpoints.load import load_causal_lm, load_scorer
from trainer.data.pairs import encode_groups
from trainer.packed.body import compared_tokens, is_decoder, mean_states
from trainer.packed.forward import IGNORED, packed_scores, packed_token_losses
from trainer.packed.heads import score_head
from trainer.training.batches import LanguageCollator

LONGEST = 500
WINDOWED: dict[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 32, "cls_token_id": 2, "sep_token_id": 3},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {},
}


@pytest.mark.parametrize("family", WINDOWED)
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(2, LONGEST), min_size=2, max_size=8))
def test_pairs_longer_than_the_window_score_and_teach_as_they_do_alone(family: str, lengths: list[int]) -> None:
    """The gradients are those of the mean square of the scores."""
    torch.manual_seed(0)
    own = {"sliding_window": 16, "num_key_value_heads": 4, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
    config = AutoConfig.for_model(family, **{**SMALL, "max_position_embeddings": 512, **own, **WINDOWED[family]})
    model: Any = AutoModelForSequenceClassification.from_config(config).train()
    tokens = torch.randint(4, SMALL["vocab_size"], (sum(lengths),), dtype=torch.int32)
    sizes = np.array(lengths)
    pairs = FlatPairs(tokens.numpy(), sizes, sizes // 2, np.zeros(len(sizes), np.bool_))
    batch = Layout(512, 8, pool_last=is_decoder(model)).pack(pairs)
    rows = dict(zip(INPUTS, map(torch.from_numpy, batch.rows), strict=True))

    together = packed_scores(model, **{name: row.long() for name, row in rows.items()}).flatten()[batch.slots]
    alone = torch.stack([model(torch.from_numpy(pair.token_ids)[None].long()).logits[0, 0] for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ours, theirs = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(scores.square().mean(), weights)])
        for scores in (together, alone)
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("make", [tiny_late, tiny_gte])
def test_heads_that_read_all_tokens_sum_them_in_float32(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Autocast would round the sums to bfloat16. Slots and rows without a pair have numbers, and so have gradients."""
    directory = make(tmp_path / "model")
    encoder, model, states = PairEncoder.load(directory), load_scorer(directory), list[torch.Tensor]()
    batch = encoder.pack(encoder.encode("river", [Document(title="", summary="bridge " * size) for size in (0, 9, 99)]))
    arrays = [np.concatenate([array, np.zeros_like(array[:1])]) for array in batch.rows]
    rows = {name: torch.from_numpy(array).long() for name, array in zip(INPUTS, arrays, strict=True)}
    model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    with torch.autocast("cpu", torch.bfloat16):
        scores_RS = packed_scores(model, **rows)
    if make is tiny_late:
        del rows["input_ids"], rows["position_ids"]
        read_RSH = compared_tokens(states[0], **rows, sharpness=20.0)
    else:
        read_RSH = mean_states(states[0], rows["segment_ids"], rows["pool_positions"])
    assert torch.equal(score_head(model, read_RSH.flatten(0, 1)), scores_RS.flatten())
    assert scores_RS.isfinite().all()
    torch.autograd.backward(scores_RS.flatten()[batch.slots].sum())
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(gradients) > 4 and all(bool(gradient.isfinite().all()) for gradient in gradients)


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


def test_late_interaction_is_continuous_where_two_tokens_are_equally_near() -> None:
    """Rounding decides there which of them is the nearest, and they may be far from each other."""
    query, first, second = torch.tensor([[1.0, 0.5, 0.5], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    rows = {
        "segment_ids": torch.ones(1, 3, dtype=torch.long),
        "token_type_ids": torch.tensor([[0, 1, 1]]),
        "pool_positions": torch.zeros(1, 1, dtype=torch.long),
    }
    read = [
        compared_tokens(torch.stack([query, first + nudge, second - nudge])[None], **rows, sharpness=20.0)
        for nudge in (torch.tensor([1e-4, 0.0, 0.0]), torch.tensor([-1e-4, 0.0, 0.0]))
    ]
    assert (read[0] - read[1]).abs().max() < 1e-3
