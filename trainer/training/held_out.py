"""Judged queries that training does not see: evaluations on the way, the best checkpoint, an early end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import DataError, QueryGroup, Scores, read_groups
from trainer.measures.metrics import MEASURE, judgments, per_query


@dataclass
class HeldOutArguments:
    """The queries that judge the model while it is trained."""

    held_out: list[str] = field(
        default_factory=list,
        metadata={"help": f"Judged queries: {MEASURE} on them at every --save_steps, and the best checkpoint wins."},
    )
    early_stop: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations on --held_out without a better one."}
    )

    def __post_init__(self) -> None:
        if self.early_stop is not None and (self.early_stop < 1 or not self.held_out):
            raise DataError("--early_stop is a number of evaluations, at least 1, and needs --held_out")


def evaluation_settings(training: TrainingArguments) -> dict[str, Any]:
    """The Trainer's settings that evaluate every saved checkpoint and end with the best one."""
    if training.save_strategy not in (IntervalStrategy.STEPS, IntervalStrategy.EPOCH):
        raise DataError("--held_out evaluates checkpoints: --save_strategy must be steps or epoch")
    return {
        "eval_strategy": IntervalStrategy(training.save_strategy),
        "eval_steps": training.save_steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{MEASURE}",
        "greater_is_better": True,
    }


@dataclass(frozen=True)
class HeldOut:
    """Judged queries, and after how many evaluations without a better one training stops."""

    groups: Sequence[QueryGroup]
    early_stop: int | None

    def callbacks(self) -> list[TrainerCallback]:
        """The Trainer's callbacks that stop it early."""
        return [] if self.early_stop is None else [EarlyStoppingCallback(early_stopping_patience=self.early_stop)]

    def evaluate(self, scorer: PackedScorer, encoder: PairEncoder) -> dict[str, Any]:
        """The mean of the measure over the judged queries, under the name by which the Trainer reads it."""
        qrels = judgments(self.groups)
        was_training = scorer.model.training
        scorer.model.eval()
        scores: Scores = {}
        for group in self.groups:
            if group.query_id in qrels:
                values = scorer.score(encoder.pack(encode_groups(encoder, [group]))).tolist()
                doc_ids = (document.doc_id for document in group.documents)
                scores[group.query_id] = dict(zip(doc_ids, values, strict=True))
        scorer.model.train(was_training)
        return {f"eval_{MEASURE}": float(np.mean(list(per_query(qrels, scores, MEASURE).values())))}


def read_held_out(arguments: HeldOutArguments) -> HeldOut | None:
    """None without ``--held_out``. Raises DataError where none of the queries is judged."""
    if not arguments.held_out:
        return None
    groups = read_groups(*arguments.held_out)
    if not judgments(groups):
        raise DataError(f"{arguments.held_out[0]}: no query is judged; --held_out needs labels")
    return HeldOut(groups, arguments.early_stop)
