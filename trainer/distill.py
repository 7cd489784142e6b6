"""Stage 3, distillation: the student learns the teacher's scores and their differences within a query.

    python -m trainer.distill --model runs/bert --data log.jsonl --scores runs/teacher_scores.parquet \\
        --output_dir runs/student

Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from trainer.checkpoints.layers import keep_layers
from trainer.checkpoints.load import check_packing, load_for_training
from trainer.command import command, parse
from trainer.data.rankings import ScoreTable
from trainer.data.records import DataError, QueryGroup
from trainer.training.batches import TrainingGroup
from trainer.training.held_out import HeldOutArguments, read_held_out
from trainer.training.losses import hybrid_mse, kl_divergence, pairwise_logistic
from trainer.training.run import StageArguments, begin, load_encoder, train_and_save
from trainer.training.streams import DataArguments, training_groups
from trainer.training.trainers import Objective, RankingTrainer, check_documents_per_query


@dataclass
class DistillArguments:
    """What to learn from, and by which loss."""

    model: str = field(metadata={"help": "Checkpoint of the student to start from (see trainer.init)."})
    scores: list[str] = field(
        metadata={"help": "Teacher scores of the pool, by trainer.score; of several teachers, a file each."}
    )
    objective: Literal["hybrid", "ranknet", "kl"] = field(
        default="hybrid",
        metadata={"help": "Point-wise and margin MSE; RankNet on the teacher's order; KL over a query's documents."},
    )
    pointwise_weight: float = field(default=1.0, metadata={"help": "Weight of the point-wise MSE (hybrid)."})
    margin_weight: float = field(default=1.0, metadata={"help": "Weight of the margin MSE (hybrid)."})
    temperature: float = field(default=1.0, metadata={"help": "Both sides' scores are divided by it (kl)."})
    label_weight: float = field(
        default=0.0, metadata={"help": "Share of the loss, 0 to 1, that is RankNet on the labels of judged pairs."}
    )
    missing: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "What to do about documents without a score of every teacher."}
    )
    student_layers: int | None = field(
        default=None, metadata={"help": "Layers of the student to keep, evenly spaced; all by default."}
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise DataError(f"--temperature must be above 0, not {self.temperature:g}")
        if not 0 <= self.label_weight < 1:
            raise DataError(f"--label_weight must be at least 0 and below 1, not {self.label_weight:g}")
        if min(self.pointwise_weight, self.margin_weight) < 0 or self.pointwise_weight + self.margin_weight == 0:
            raise DataError("--pointwise_weight and --margin_weight must not be negative, nor both 0")


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, data, looks, training = parse(argv, DistillArguments, DataArguments, HeldOutArguments, StageArguments)
    check_documents_per_query(data.documents_per_query)
    run = begin(training, arguments, data, looks)
    teachers = [read_teacher(path) for path in arguments.scores]
    taught = Taught(teachers)
    check = partial(taught.check, arguments.missing)
    groups = training_groups(data, taught, training, "no document has a score of every teacher", check)
    encoder, tokenizer = load_encoder(arguments.model)
    model = load_for_training(arguments.model)
    if arguments.student_layers is not None:
        keep_layers(model, arguments.student_layers)
    check_packing(model, encoder, arguments.model)
    trainer = RankingTrainer(
        model, encoder, objective(arguments), training, arguments.label_weight,
        token_budget=training.token_budget, held_out=read_held_out(looks), train_dataset=groups,
    )  # fmt: skip
    statistics = [
        {"source": teacher.source, "mean": teacher.mean, "standard_deviation": teacher.deviation}
        for teacher in teachers
    ]
    train_and_save(trainer, encoder, tokenizer, run, {"stage": "distill", "teacher_scores": statistics})


def objective(arguments: DistillArguments) -> Objective:
    if arguments.objective == "ranknet":
        return pairwise_logistic
    if arguments.objective == "kl":
        return partial(kl_divergence, temperature=arguments.temperature)
    return partial(hybrid_mse, pointwise_weight=arguments.pointwise_weight, margin_weight=arguments.margin_weight)


@dataclass(frozen=True)
class Teacher:
    """One teacher's scores of the pool, and their mean and standard deviation over all pairs."""

    source: str
    scores: ScoreTable
    mean: float
    deviation: float

    def standard_score(self, query_id: str, doc_id: str) -> float:
        """Brought to mean 0 and deviation 1; NaN where this teacher did not score the pair."""
        return (self.scores.get(query_id, doc_id) - self.mean) / self.deviation


def read_teacher(path: str) -> Teacher:
    """Raises DataError where all scores are equal."""
    table = ScoreTable(path)
    values = table.scores.astype(np.float64)
    if values.size == 0 or values.std() == 0:
        raise DataError(f"{path}: all {values.size} teacher scores are equal: nothing to learn from")
    return Teacher(path, table, float(values.mean()), float(values.std()))


class Taught:
    """The documents of a query that every teacher scored, with the mean of the standardised scores.

    A teacher on a scale of its own (0 to 1, say) would under margin MSE collapse the student to a constant.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = teachers
        self._missing, self._first = 0, ""

    def __call__(self, group: QueryGroup) -> TrainingGroup | None:
        taught = []
        for document in group.documents:
            score = float(np.mean([each.standard_score(group.query_id, document.doc_id) for each in self._teachers]))
            if math.isnan(score):
                self._missing += 1
                self._first = self._first or f"document {document.doc_id!r} of query {group.query_id!r}"
            else:
                taught.append((document, score, math.nan if document.label is None else document.label))
        if not taught:
            return None
        documents, scores, labels = zip(*taught, strict=True)
        return TrainingGroup(group.query_id, group.query, documents, scores, labels)

    def check(self, missing: str) -> None:
        """After a pass over the data, raises DataError for scores of pairs that are not in it, and for documents
        without a score if ``missing`` is ``fail``."""
        for teacher in self._teachers:
            teacher.scores.check_known()
        if self._missing:
            message = f"{self._missing:,} pairs have no teacher score, the first is {self._first}"
            if missing == "fail":
                raise DataError(f"{message}; --missing skip trains on the others")
            print(f"{message}: skipped", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
