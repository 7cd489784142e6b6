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

from trainer.collate import TrainingGroup
from trainer.data import DataError, QueryGroup, Scores, check_known, read_groups, read_scores
from trainer.held_out import HeldOutArguments, read_held_out
from trainer.layers import keep_layers
from trainer.losses import hybrid_mse, kl_divergence, pairwise_logistic
from trainer.models import check_packing, load_for_training, use_packed_forward
from trainer.stage import StageArguments, begin, command, load_encoder, parse, train_and_save
from trainer.training import Objective, RankingTrainer, check_documents_per_query, drawn


@dataclass
class DistillArguments:
    """What to learn from, and by which loss."""

    model: str = field(metadata={"help": "Checkpoint of the student to start from (see trainer.init)."})
    data: list[str] = field(metadata={"help": "Pool of pairs (JSONL, Parquet)."})
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
    documents_per_query: int | None = field(
        default=None, metadata={"help": "Documents of a query in one step, drawn anew each time; all by default."}
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
        check_documents_per_query(self.documents_per_query)


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, looks, training = parse(argv, DistillArguments, HeldOutArguments, StageArguments)
    run = begin(training, arguments, looks)
    groups = [group for path in arguments.data for group in read_groups(path)]
    teachers = [read_teacher(path, groups) for path in arguments.scores]
    taught = standardised(groups, teachers, arguments.missing)
    encoder, tokenizer = load_encoder(arguments.model)
    model = load_for_training(arguments.model)
    if arguments.student_layers is not None:
        keep_layers(model, arguments.student_layers)
    check_packing(model, encoder, arguments.model)
    trainer = RankingTrainer(
        use_packed_forward(model), encoder, objective(arguments), training, arguments.label_weight,
        held_out=read_held_out(looks), train_dataset=drawn(taught, arguments.documents_per_query, training.seed),
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
    scores: Scores
    mean: float
    deviation: float

    def standard_score(self, query_id: str, doc_id: str) -> float:
        """Brought to mean 0 and deviation 1; NaN where this teacher did not score the pair."""
        return (self.scores.get(query_id, {}).get(doc_id, math.nan) - self.mean) / self.deviation


def read_teacher(path: str, groups: Sequence[QueryGroup]) -> Teacher:
    """Raises DataError for scores of pairs that are not in the pool, and where all scores are equal."""
    scores = read_scores(path)
    check_known(scores, groups, path)
    values = np.array([score for documents in scores.values() for score in documents.values()])
    if values.size == 0 or values.std() == 0:
        raise DataError(f"{path}: all {values.size} teacher scores are equal: nothing to learn from")
    return Teacher(path, scores, float(values.mean()), float(values.std()))


def standardised(
    groups: Sequence[QueryGroup], teachers: Sequence[Teacher], missing: str = "fail"
) -> list[TrainingGroup]:
    """The documents of each query that every teacher scored, with the mean of the standardised scores.

    A teacher on a scale of its own (0 to 1, say) would under margin MSE collapse the student to a constant.
    """
    kept, skipped = [], []
    for group in groups:
        taught = []
        for document in group.documents:
            score = float(np.mean([teacher.standard_score(group.query_id, document.doc_id) for teacher in teachers]))
            if math.isnan(score):
                skipped.append(f"document {document.doc_id!r} of query {group.query_id!r}")
            else:
                taught.append((document, score, math.nan if document.label is None else document.label))
        if taught:
            documents, scores, labels = zip(*taught, strict=True)
            kept.append(TrainingGroup(group.query_id, group.query, documents, scores, labels))
    if skipped:
        message = f"{len(skipped):,} pairs have no teacher score, the first is {skipped[0]}"
        if missing == "fail":
            raise DataError(f"{message}; --missing skip trains on the others")
        print(f"{message}: skipped", file=sys.stderr)
    return kept


if __name__ == "__main__":
    sys.exit(main())
