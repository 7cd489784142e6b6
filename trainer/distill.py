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
from typing import Any, Literal

import numpy as np

from trainer.checkpoints.layers import keep_layers
from trainer.checkpoints.load import load_checkpoint
from trainer.command import command, parse
from trainer.data.rankings import ScoreTable, teacher_names
from trainer.data.records import DataError, QueryGroup
from trainer.packed.attention import use_kernel
from trainer.training import losses
from trainer.training.batches import TrainingGroup
from trainer.training.fitted_head import fit_head
from trainer.training.held_out import JudgedArguments, read_held_out
from trainer.training.run import StageArguments, begin, train_and_save
from trainer.training.streams import DataArguments, training_groups
from trainer.training.trainers import (
    MEAN_OVER_HELP,
    MeanOver,
    RankingTrainer,
    Term,
    check_documents_per_query,
    described,
)

FEW = 10  # scores of which one may be far from the others
NARROW = 0.5  # deviation of scores; that of probabilities is below


@dataclass
class DistillArguments:
    """The scores to learn from, and the loss."""

    model: str = field(metadata={"help": "Checkpoint of the student to start from (see trainer.init)."})
    scores: list[str] = field(
        metadata={"help": "Teacher scores of the pool, by trainer.score; of several teachers, a file each."}
    )
    objective: Literal["hybrid", "ranknet", "kl", "adr_mse", "list_mle"] = field(
        default="hybrid",
        metadata={
            "help": "Point-wise and margin MSE; KL over a query's documents; or of the teacher's order alone, RankNet, "
            "ADR-MSE, ListMLE."
        },
    )
    pointwise_weight: float = field(default=1.0, metadata={"help": "Weight of the point-wise MSE (hybrid)."})
    margin_weight: float = field(default=1.0, metadata={"help": "Weight of the margin MSE (hybrid)."})
    temperature: float = field(default=1.0, metadata={"help": "Both sides' scores are divided by it (kl)."})
    discount: bool = field(
        default=False, metadata={"help": "Weigh each pair by the rank of its better document (ranknet)."}
    )
    mean_over: MeanOver = field(default="queries", metadata={"help": MEAN_OVER_HELP})
    label_weight: float = field(
        default=0.0, metadata={"help": "Share of the loss, 0 to 1, that is RankNet on the labels of judged pairs."}
    )
    standardise: bool = field(
        default=True,
        metadata={"help": "Bring the scores of each teacher to mean 0 and deviation 1; false takes them as they are."},
    )
    missing: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "Whether documents without a score of every teacher are an error."}
    )
    fit_head: bool = field(
        default=False,
        metadata={
            "help": "Before the first step, multiply the head's last layer by the slope of the teacher's margins on "
            "the student's, and bring its bias to the teacher's mean; for a student that ranks already."
        },
    )
    student_layers: int | None = field(
        default=None, metadata={"help": "Layers of the student to keep, evenly spaced; all by default."}
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise DataError(f"--temperature must be above 0, not {self.temperature:g}")
        if not 0 <= self.label_weight < 1:
            raise DataError(f"--label_weight must be at least 0 and below 1, not {self.label_weight:g}")
        if self.discount and self.objective != "ranknet":
            raise DataError(f"--discount is for the objective ranknet, not for {self.objective}")
        if min(self.pointwise_weight, self.margin_weight) < 0 or self.pointwise_weight + self.margin_weight == 0:
            raise DataError("--pointwise_weight and --margin_weight must not be negative, nor both 0")


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, data, judge, training = parse(argv, DistillArguments, DataArguments, JudgedArguments, StageArguments)
    check_documents_per_query(data.documents_per_query)
    held_out = read_held_out(judge)
    run = begin(training, arguments, data, judge, held_out=held_out)
    student = load_checkpoint(arguments.model, causal=False, seed=training.seed)
    if arguments.student_layers is not None:
        keep_layers(student.model, arguments.student_layers)
    teachers = [read_teacher(path, arguments.standardise) for path in arguments.scores]
    terms, targets = objective(arguments), TeacherTargets(teachers)
    comparing = any(term.loss is not losses.pointwise_mse for term in terms)
    check = partial(targets.check, arguments.missing, comparing)
    groups = training_groups(data, targets, run.training, "no document has a score of every teacher", check, held_out)
    trainer = RankingTrainer(
        student.model, student.encoder, terms, run.training,
        by_count=arguments.mean_over == "pairs", held_out=held_out, train_dataset=groups,
    )  # fmt: skip
    record: dict[str, Any] = {"stage": "distill", "objective": described(terms)}
    if arguments.fit_head:
        record["head_factor"] = fit_head(student, groups, training)
    use_kernel(student.model, training.attention, training=True)  # a fused one may want the Trainer's autocast
    train_and_save(trainer, student, run, {**record, "teacher_scores": [teacher.as_record() for teacher in teachers]})


def objective(arguments: DistillArguments) -> list[Term]:
    terms = {
        "hybrid": [
            Term(arguments.pointwise_weight, losses.pointwise_mse), Term(arguments.margin_weight, losses.margin_mse),
        ],
        "ranknet": [Term(1.0, partial(losses.pairwise_logistic, discount=arguments.discount))],
        "kl": [Term(1.0, partial(losses.kl_divergence, temperature=arguments.temperature))],
        "adr_mse": [Term(1.0, losses.adr_mse)],
        "list_mle": [Term(1.0, losses.list_mle)],
    }[arguments.objective]  # fmt: skip
    terms = [term for term in terms if term.weight]
    if not arguments.label_weight:
        return terms
    taught = [term._replace(weight=(1 - arguments.label_weight) * term.weight) for term in terms]
    return [*taught, Term(arguments.label_weight, losses.pairwise_logistic, on_labels=True)]


@dataclass(frozen=True)
class Teacher:
    """One teacher's scores of the pool, and their mean and standard deviation over all pairs."""

    source: str
    scores: ScoreTable
    mean: float
    deviation: float
    standardise: bool = True

    def target(self, query_id: str, doc_id: str) -> float:
        """The score, at mean 0 and deviation 1 if scores are to be; NaN where this teacher did not score the pair."""
        score = self.scores.get(query_id, doc_id)
        return (score - self.mean) / self.deviation if self.standardise else score

    def as_record(self) -> dict[str, Any]:
        names = teacher_names(self.source)
        return {"source": self.source, "teachers": names, "mean": self.mean, "standard_deviation": self.deviation}


def read_teacher(path: str, standardise: bool = True) -> Teacher:
    """A teacher's scores from a file of trainer.score.

    A line says where scores that are taken as they are hardly differ. Raises DataError where all scores are equal, and
    where one of many has more than half of their variance.
    """
    table = ScoreTable(path)
    values = table.scores.astype(np.float64)
    if values.size == 0 or values.std() == 0:
        raise DataError(f"{path}: all {values.size} teacher scores are equal: nothing to learn from")
    farthest = int(np.abs(values - values.mean()).argmax())
    if values.size >= FEW and (values[farthest] - values.mean()) ** 2 > values.size * values.var() / 2:
        raise DataError(
            f"{path}: one score, {values[farthest]:g}, is so far from the others that these are as if equal"
        )
    if not standardise and values.std() < NARROW:
        print(
            f"{path}: the scores deviate by {values.std():.2g} only: taken as they are, their margins may teach the "
            "student one score for all documents",
            file=sys.stderr,
        )
    return Teacher(path, table, float(values.mean()), float(values.std()), standardise)


class TeacherTargets:
    """Gives the documents of a query that every teacher scored, with the mean of the teachers' targets.

    By default these are standardised: under margin MSE, a teacher whose scores lie between 0 and 1 would collapse the
    student to a constant.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = teachers
        self._missing, self._first = 0, ""
        self._queries = self._single = 0

    def __call__(self, group: QueryGroup) -> TrainingGroup | None:
        taught = []
        for document in group.documents:
            pair = (group.query_id, document.doc_id)
            score = float(np.mean([teacher.target(*pair) for teacher in self._teachers]))
            if math.isnan(score):
                self._missing += 1
                self._first = self._first or f"document {document.doc_id!r} of query {group.query_id!r}"
            else:
                taught.append((document, score, math.nan if document.label is None else document.label))
        if not taught:
            return None
        self._queries += 1
        self._single += len(taught) == 1
        documents, scores, labels = zip(*taught, strict=True)
        return TrainingGroup(group.query_id, group.query, documents, scores, labels, weight=group.weight)

    def check(self, missing: str, comparing: bool) -> None:
        """Called after a pass over the data; ``comparing`` is an objective that compares documents of a query.

        Raises DataError for scores of pairs that are not in the data, for documents without a score if ``missing`` is
        ``fail``, and where an objective finds nothing to compare in any query.
        """
        for teacher in self._teachers:
            teacher.scores.check_known()
        if self._missing:
            message = f"{self._missing:,} pairs have no teacher score, the first is {self._first}"
            if missing == "fail":
                raise DataError(f"{message}; --missing skip trains on the others")
            print(f"{message}: skipped", file=sys.stderr)
        if comparing and self._single == self._queries > 0:
            raise DataError(
                "every query has one document, and a part of the objective compares documents: a flat pool is learnt "
                "by the point-wise loss alone, --margin_weight 0"
            )
        if comparing and self._single:
            print(
                f"{self._single:,} of {self._queries:,} queries have one document, which is compared with no other",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
