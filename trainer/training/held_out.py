"""Judged queries that training does not see: evaluations on the way, the best checkpoint, an early end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import PackedScorer
from trainer.data.records import DataError, QueryGroup, read_groups
from trainer.measures.metrics import MEASURE, judgments, per_query
from trainer.scoring.checkpoint import ROWS_PER_PASS, GroupScorer

LOSS = "loss"  # the measure of continued pre-training; of all, it alone is better where it is lower


@dataclass
class HeldOutArguments:
    """The queries that judge the model while it is trained."""

    held_out: list[str] = field(
        default_factory=list,
        metadata={"help": "Queries that judge the model at every --save_steps; the best checkpoint wins."},
    )
    early_stop: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations on --held_out without a better one."}
    )

    def __post_init__(self) -> None:
        if self.early_stop is not None and (self.early_stop < 1 or not self.held_out):
            raise DataError("--early_stop is a number of evaluations, at least 1, and needs --held_out")


@dataclass
class JudgedArguments(HeldOutArguments):
    """Held-out queries with labels, and the measure on them."""

    measure: str = field(default=MEASURE, metadata={"help": "What --held_out is judged by, a name of ir_measures."})


def evaluation_settings(training: TrainingArguments, measure: str) -> dict[str, Any]:
    """The Trainer's settings that evaluate every saved checkpoint and end with the best one."""
    if training.save_strategy not in (IntervalStrategy.STEPS, IntervalStrategy.EPOCH):
        raise DataError("--held_out evaluates checkpoints: --save_strategy must be steps or epoch")
    return {
        "eval_strategy": IntervalStrategy(training.save_strategy),
        "eval_steps": training.save_steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{measure}",
        "greater_is_better": measure != LOSS,
        "restore_callback_states_from_checkpoint": True,  # the patience of an early end
    }


@dataclass(frozen=True)
class HeldOut:
    """The queries, their measure, and after how many evaluations without a better one training stops."""

    groups: Sequence[QueryGroup]
    measure: str
    early_stop: int | None

    def callbacks(self) -> list[TrainerCallback]:
        """The Trainer's callbacks that stop it early."""
        return [] if self.early_stop is None else [EarlyStoppingCallback(early_stopping_patience=self.early_stop)]

    def trained_on(self, numbered: Iterable[tuple[int, QueryGroup]]) -> Iterator[tuple[int, QueryGroup]]:
        """The groups as they come; at their end, a line on standard error if there were queries of ours among them."""
        ours = {_normal(group.query) for group in self.groups}
        also = list[QueryGroup]()
        for number, group in numbered:
            if _normal(group.query) in ours:
                ours.remove(_normal(group.query))
                also.append(group)
            yield number, group
        if also:
            print(
                f"--held_out: {len(also):,} of its {len(self.groups):,} queries are trained on too, such as "
                f"{also[0].query!r}: they judge nothing",
                file=sys.stderr,
            )

    def evaluate(self, scorer: PackedScorer, encoder: PairEncoder, rows_per_pass: int | None) -> dict[str, Any]:
        """The mean of the measure over the judged queries, under the name by which the Trainer reads it.

        As ``trainer.evaluate`` has it: processes share out the queries, with ``rows_per_pass`` packed rows at a time.
        """
        qrels = judgments(self.groups)
        judged = [group for group in self.groups if group.query_id in qrels]
        was_training = scorer.model.training
        scorer.model.eval()
        rows_per_pass = rows_per_pass or ROWS_PER_PASS
        scores = GroupScorer("--held_out", scorer, encoder, rows_per_pass).score_all(judged, quiet=True)
        scorer.model.train(was_training)
        return {f"eval_{self.measure}": float(np.mean(list(per_query(qrels, scores, self.measure).values())))}


def _normal(query: str) -> str:
    return " ".join(query.casefold().split())


def read_held_out(arguments: JudgedArguments) -> HeldOut | None:
    """None without ``--held_out``. Raises DataError where none of the queries is judged."""
    if not arguments.held_out:
        return None
    groups = read_groups(*arguments.held_out)
    if not (qrels := judgments(groups)):
        raise DataError(f"{arguments.held_out[0]}: no query is judged; --held_out needs labels")
    per_query(qrels, {}, arguments.measure)  # a measure that cannot be computed is refused before the training
    return HeldOut(groups, arguments.measure, arguments.early_stop)
