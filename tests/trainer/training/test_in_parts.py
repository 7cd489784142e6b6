"""The forward pass of training: losses of packed pairs, and parts that give the gradient of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.memory import Peak
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_llm, training_groups
from tests.support.rerankers import tiny_late
from trainer.checkpoints.load import load_causal_lm, load_for_training
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.data.records import DataError
from trainer.training.batches import LanguageCollator, RankingCollator
from trainer.training.in_parts import rows_within, use_packed_forward
from trainer.training.losses import margin_mse, pairwise_logistic


def gradients(model: Any, batch: Any, objective: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """One step's gradients of a scorer in training mode, dropout and all."""
    model.zero_grad()
    torch.manual_seed(seed)
    scores = model.train()(**batch["packed"]).flatten()[batch["slots"]]
    objective(scores, batch["targets"], batch["groups"]).losses.mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def dropping(model: Any, share: float) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
    return model


@pytest.mark.parametrize("make", [tiny_bert, tiny_late, tiny_llama, tiny_llm])
def test_parts_have_the_gradient_of_the_whole(tmp_path: Path, make: Any) -> None:
    """Without dropout; a row at a time, a last part that has fewer rows, and a budget that no step fills.

    In float64, since the differences of near cosines lose digits.
    """
    directory = make(tmp_path / "model")
    model = dropping(load_for_training(directory).double(), 0.0)
    batch = RankingCollator(PairEncoder.load(directory))(training_groups(tmp_path, queries=2, documents=20))
    assert batch["packed"]["input_ids"].shape[0] % 5 > 0
    whole = gradients(use_packed_forward(model), batch, margin_mse)
    for rows in (1, 5, 100):
        parts = gradients(use_packed_forward(model, rows), batch, margin_mse)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_second_pass_drops_out_what_the_first_did(tmp_path: Path, checkpointing: bool) -> None:
    """With other masks the two passes would belong to different functions; a finite difference tells."""
    directory = tiny_bert(tmp_path / "model")
    model = dropping(load_for_training(directory).double(), 0.3)
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = RankingCollator(PairEncoder.load(directory))(training_groups(tmp_path, queries=1, documents=12))
    use_packed_forward(model, 1)
    weight = model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    expected = (gradients(model, batch, margin_mse)["bert.encoder.layer.0.output.dense.weight"] * direction).sum()

    def loss(step: float) -> float:
        with torch.no_grad():
            weight.add_(step * direction)
        torch.manual_seed(0)
        scores = model(**batch["packed"]).flatten()[batch["slots"]].detach()
        with torch.no_grad():
            weight.sub_(step * direction)
            return float(margin_mse(scores, batch["targets"], batch["groups"]).losses.mean())

    step = 1e-3
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("rank", [0, 2])
def test_activation_checkpointing_leaves_the_gradient_as_it_is(tmp_path: Path, rank: int) -> None:
    directory = tiny_llama(tmp_path / "model")
    model = load_for_training(directory)
    torch.manual_seed(0)
    add_adapters(model, LoraArguments(lora_rank=rank), str(directory))
    batch = RankingCollator(PairEncoder.load(directory))(training_groups(tmp_path, queries=2))
    use_packed_forward(model)
    plain = gradients(model, batch, pairwise_logistic)
    model.activation_checkpointing_enable()
    again = gradients(model, batch, pairwise_logistic)
    assert plain.keys() == again.keys()
    assert len(plain) > 4
    assert all(torch.allclose(again[name], gradient, atol=1e-7) for name, gradient in plain.items())


def test_a_hundred_documents_take_the_memory_of_a_part(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path / "model", layers=6)
    model = load_for_training(directory)
    collate = RankingCollator(PairEncoder.load(directory))
    peaks = {}
    for documents, rows in ((20, None), (200, None), (20, 2), (200, 2)):
        batch = collate(training_groups(tmp_path, queries=1, documents=documents))
        use_packed_forward(model, rows)
        with Peak() as peak:
            gradients(model, batch, margin_mse)
        peaks[documents, rows] = peak.bytes
    assert peaks[200, None] > 5 * peaks[20, None]
    assert peaks[200, 2] < 0.2 * peaks[200, None]
    assert peaks[200, 2] < 1.6 * peaks[20, 2]


def test_a_budget_below_one_row_is_refused() -> None:
    assert rows_within(None, 256) is None
    assert rows_within(1000, 256) == 3
    with pytest.raises(DataError, match="--token_budget 255 is below one row of the checkpoint, 256 token slots"):
        rows_within(255, 256)


def test_parts_of_a_language_model_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    directory = tiny_llm(tmp_path / "llama")
    model = load_causal_lm(directory)
    batch = LanguageCollator(PairEncoder.load(directory))(training_groups(tmp_path, queries=3))
    found = []
    for rows in (None, 2):
        use_packed_forward(model, rows)
        model.zero_grad()
        losses_RL = model(**batch["packed"], labels=batch["labels"])
        torch.autograd.backward((losses_RL * batch["weights"]).sum() / batch["weights"].sum())
        found.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert all(torch.allclose(found[1][name], gradient, atol=1e-6) for name, gradient in found[0].items())
