"""A last layer for pooled tokens alone: the states, the gradients and the dropout of the whole layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from engines.graph.precision import typed_model
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import SMALL, training_groups
from trainer.packed import body
from trainer.packed.body import POOLED_STATES, reads_pooled_tokens
from trainer.packed.forward import packed_scores
from trainer.training.batches import RankingBatch, RankingCollator


@pytest.fixture(scope="module")
def batch(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> RankingBatch:
    return RankingCollator(PairEncoder.load(bert))(training_groups(tmp_path_factory.mktemp("batch")))


def built(family: str, dropout: float = 0.0, **more: Any) -> Any:
    torch.manual_seed(0)
    kinds = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
    size = {**SMALL, "num_hidden_layers": 3, "max_position_embeddings": 128, "embedding_size": 16}
    # Of ModernBERT: a window narrower than pairs are, and control tokens within the small vocabulary.
    own = {"local_attention": 8, **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 3)}
    config = AutoConfig.for_model(family, **{**size, **dict.fromkeys(kinds, dropout), **own, **more})
    return AutoModelForSequenceClassification.from_config(config).train()


def step(model: Any, batch: RankingBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    scores = packed_scores(model, **batch["packed"]).flatten()[batch["slots"]]
    torch.autograd.backward(scores.square().mean())
    return scores.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("family", "layers"),
    [*((family, 3) for family in sorted(POOLED_STATES)), ("modernbert", 4)],  # the fourth sees whole pairs
)
def test_scores_and_gradients_are_those_of_the_whole_layer(
    family: str, layers: int, batch: RankingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(family, num_hidden_layers=layers)
    assert reads_pooled_tokens(model)
    scores, gradients = step(model, batch)
    monkeypatch.setattr(body, "POOLED_STATES", {})
    assert not reads_pooled_tokens(model)
    whole, expected = step(model, batch)
    assert torch.allclose(scores, whole, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert all(torch.allclose(gradients[name], gradient, atol=1e-6) for name, gradient in expected.items())


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-6), ("bf16", 0.05)])
def test_engines_are_built_with_it(
    family: str, precision: str, apart: float, batch: RankingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their attention is written out, and their norms are wrapped."""
    model = typed_model(built(family).eval(), precision)
    assert reads_pooled_tokens(model)
    with torch.no_grad():
        scores = packed_scores(model, **batch["packed"]).flatten()[batch["slots"]]
        monkeypatch.setattr(body, "POOLED_STATES", {})
        whole = packed_scores(model, **batch["packed"]).flatten()[batch["slots"]]
    assert torch.allclose(scores, whole, atol=apart)
    assert whole.std() > 2 * apart


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_it_drops_out_in_the_last_layer_too(family: str, batch: RankingBatch) -> None:
    """There is no other layer, and no dropout elsewhere."""
    model = built(family, dropout=0.5, num_hidden_layers=1)
    if family == "bert":
        model.dropout.p = model.bert.embeddings.dropout.p = 0.0
    with torch.no_grad():
        drawn = [packed_scores(model, **batch["packed"]).flatten()[batch["slots"]] for _ in range(2)]
        model.eval()
        still = [packed_scores(model, **batch["packed"]).flatten()[batch["slots"]] for _ in range(2)]
    assert not torch.allclose(drawn[0], drawn[1])
    assert torch.equal(still[0], still[1])


def test_other_families_and_attention_run_the_whole_layer() -> None:
    assert not reads_pooled_tokens(built("albert"))
    assert not reads_pooled_tokens(built("bert", attn_implementation="eager"))
