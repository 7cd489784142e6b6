"""A query's weight multiplies its loss in every stage: packed and in parts, against a loop over pairs in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_llm, training_groups
from trainer.data.pairs import encode_groups
from trainer.training import losses
from trainer.training.batches import TrainingGroup
from trainer.training.held_out import LOSS, HeldOut
from trainer.training.losses import mean_over_queries
from trainer.training.run import StageArguments
from trainer.training.trainers import LanguageTrainer, RankingTrainer, StageTrainer, Term

WEIGHTS = (2.0, 0.0, 0.25, 1.0)


def weighted(directory: Path) -> list[TrainingGroup]:
    groups = training_groups(directory, queries=len(WEIGHTS), documents=5)
    return [replace(group, weight=weight) for group, weight in zip(groups, WEIGHTS, strict=True)]


def arguments(directory: Path, **settings: Any) -> StageArguments:
    return StageArguments(output_dir=str(directory), use_cpu=True, report_to="none", **settings)


def loss_of(trainer: StageTrainer, groups: Any) -> float:
    model: Any = trainer.model
    collate = trainer.data_collator
    loss: Any = trainer.compute_loss(model.eval(), collate(groups))
    return float(loss.detach())


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5), st.booleans(), st.data())
def test_a_whole_weight_is_as_if_the_query_came_as_often(
    queries: list[tuple[int, int]], by_count: bool, data: st.DataObject
) -> None:
    """Each of ``queries`` has so many documents, with labels 0, 1 and so on, and a weight."""
    scores = [torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
              for place, (size, _) in enumerate(queries)]  # fmt: skip
    repeated = [scores[place] for place, (_, weight) in enumerate(queries) for _ in range(weight)]
    objective = getattr(losses, data.draw(st.sampled_from(["margin_mse", "pairwise_logistic", "kl_divergence"])))

    def step(lists: list[torch.Tensor], weights: torch.Tensor) -> tuple[float, float]:
        labels = torch.cat([torch.arange(len(each), dtype=torch.float64) for each in lists])
        groups = torch.cat([torch.full((len(each),), place) for place, each in enumerate(lists)])
        total, weight = mean_over_queries(objective(torch.cat(lists), labels, groups), weights, by_count)
        return total.item(), weight.item()

    total, weight = step(scores, tensor([float(weight) for _, weight in queries]))
    if repeated:
        assert (total, weight) == pytest.approx(step(repeated, torch.ones(len(repeated))), rel=1e-6)
    else:
        assert total == weight == 0


@pytest.mark.parametrize("token_budget", [None, 128])
def test_a_step_of_ranking_is_the_weighted_mean_over_its_queries(
    bert: Path, tmp_path: Path, token_budget: int | None
) -> None:
    groups, encoder = weighted(tmp_path), PairEncoder.load(bert)
    model = AutoModelForSequenceClassification.from_pretrained(bert).double().eval()
    total = 0.0
    for group in groups:
        scores = [
            model(tensor([pair.token_ids.tolist()]), token_type_ids=tensor([[int(place >= pair.document_start) for
                  place in range(len(pair.token_ids))]])).logits.item()
            for pair in encode_groups(encoder, [group])
        ]  # fmt: skip
        pairs = [(better, worse) for place, worse in enumerate(scores) for better in scores[place + 1 :]]
        mean = sum(math.log1p(math.exp(worse - better)) for better, worse in pairs) / len(pairs)
        total += group.weight * mean / sum(WEIGHTS)
    packed = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    settings = arguments(tmp_path, token_budget=token_budget)
    trainer = RankingTrainer(packed, encoder, [Term(1.0, losses.pairwise_logistic)], settings)
    assert loss_of(trainer, groups) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("token_budget", [None, 128])
def test_the_loss_of_pre_training_is_the_weighted_mean_over_tokens_here_and_held_out(
    tmp_path: Path, token_budget: int | None
) -> None:
    """By transformers' own forward, pair by pair; a document's weight is its target times that of its query."""
    groups, directory = weighted(tmp_path), tiny_llm(tmp_path / "llm")
    encoder = PairEncoder.load(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    total = weight = 0.0
    for group in groups:
        for pair, target in zip(encode_groups(encoder, [group]), group.targets, strict=True):
            is_cut = pair.truncated and len(pair.token_ids) == encoder.config.max_pair_tokens
            ids = pair.token_ids.tolist()[: -1 if is_cut else None]
            logits_TV = model(tensor([ids])).logits[0].log_softmax(-1)
            for place in range(pair.document_start, len(ids)):
                total -= group.weight * target * logits_TV[place - 1, ids[place]].item()
                weight += group.weight * target
    settings = arguments(tmp_path, token_budget=token_budget, per_device_eval_batch_size=3)
    packed: Any = AutoModelForCausalLM.from_pretrained(directory)
    trainer = LanguageTrainer(packed, encoder, settings, held_out=HeldOut(groups, LOSS, None))
    assert loss_of(trainer, groups) == pytest.approx(total / weight, rel=1e-5)
    packed.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / weight, rel=1e-5)
    assert packed.training
