"""Our trainers: distillation of a student, continued pre-training and rank fine-tuning of a decoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.training.job import Group, Job, Outcome
from bench.training.workers.clock import counted_groups, counted_pairs, main, settings, timed
from trainer.checkpoints.load import load_causal_lm, load_encoder, load_for_training
from trainer.data.records import JudgedDocument
from trainer.training.batches import TrainingGroup
from trainer.training.losses import QueryLosses, pairwise_logistic
from trainer.training.run import StageArguments
from trainer.training.trainers import LanguageTrainer, RankingTrainer, Term


def first_margin_mse(student: Tensor, targets: Tensor, groups: Tensor) -> QueryLosses:
    """The mean of ``((s_0 - s_j) - (t_0 - t_j))^2`` over the documents after each query's first: the loss of
    sentence-transformers, which compares the first with each of the others, over all queries at once.

    ``student[N]``, ``targets[N]``, ``groups[N]`` 0, 1, .. in order.
    """
    first = torch.ones_like(groups, dtype=torch.bool)
    first[1:] = groups[1:] != groups[:-1]
    errors = student - targets
    losses = (errors[first][groups] - errors)[~first].square()
    return QueryLosses(losses.mean()[None], torch.ones(1))


def distil(job: Job) -> Outcome:
    return _ranking(job, first_margin_mse, comparisons=0)


def rank(job: Job) -> Outcome:
    return _ranking(job, pairwise_logistic, sum(ordered(group) for group in counted_groups(job)))


def pretrain(job: Job) -> Outcome:
    encoder, _ = load_encoder(job.checkpoint)
    model = load_causal_lm(job.checkpoint)
    trainer = LanguageTrainer(model, encoder, args=StageArguments(**settings(job)), train_dataset=_records(job.groups))
    return timed(trainer, job, counted_pairs(job), 0)


def _ranking(job: Job, objective: Any, comparisons: int) -> Outcome:
    encoder, _ = load_encoder(job.checkpoint)
    model = load_for_training(job.checkpoint)
    arguments, terms = StageArguments(**settings(job)), [Term(1.0, objective)]
    trainer = RankingTrainer(model, encoder, terms, arguments, by_count=True, train_dataset=_records(job.groups))
    return timed(trainer, job, counted_pairs(job), comparisons)


def ordered(group: Group) -> int:
    """The number of pairs of the group's documents with different targets."""
    return sum(one > other for one in group.targets for other in group.targets)


def _records(groups: Sequence[Group]) -> Any:
    return [
        TrainingGroup(
            f"q{number}",
            group.query,
            tuple(JudgedDocument(f"d{place}", "", text, None, 0) for place, text in enumerate(group.documents)),
            group.targets,
        )
        for number, group in enumerate(groups)
    ]


if __name__ == "__main__":
    main({"distil": distil, "rank": rank, "pretrain": pretrain}[sys.argv[1]], sys.argv[2:])
