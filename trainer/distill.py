"""Stage 3, distillation: the student learns the teacher's scores and their differences within a query.

    python -m trainer.distill --model runs/bert --data log.jsonl --scores runs/teacher_scores.parquet \\
        --output_dir runs/student

Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from trainer.collate import TrainingGroup
from trainer.data import DataError, QueryGroup, Scores, check_known, read_groups, read_scores
from trainer.losses import hybrid_mse
from trainer.models import check_packing, load_for_training, use_packed_forward
from trainer.stage import (
    RankingTrainer,
    StageArguments,
    begin,
    command,
    load_encoder,
    parse,
    settings_of,
    train_and_save,
)


@dataclass
class DistillArguments:
    """What to learn from, and how the two terms of the loss weigh."""

    model: str = field(metadata={"help": "Checkpoint of the student to start from (see trainer.init)."})
    data: list[str] = field(metadata={"help": "Pool of pairs (JSONL, Parquet)."})
    scores: str = field(metadata={"help": "Teacher scores of the pool, by trainer.score."})
    pointwise_weight: float = field(default=1.0, metadata={"help": "Weight of the point-wise MSE."})
    margin_weight: float = field(default=1.0, metadata={"help": "Weight of the margin MSE."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, training = parse(argv, DistillArguments, StageArguments)
    output_dir = begin(training)
    groups = [group for path in arguments.data for group in read_groups(path)]
    scores = read_scores(arguments.scores)
    check_known(scores, groups, arguments.scores)
    mean, deviation = statistics(scores, arguments.scores)
    taught = standardised(groups, scores, mean, deviation)
    without = sum(len(group.documents) for group in groups) - sum(len(group.documents) for group in taught)
    if without:
        print(f"{without:,} pairs have no teacher score: skipped", file=sys.stderr)
    encoder, tokenizer = load_encoder(arguments.model)
    model = load_for_training(arguments.model)
    check_packing(model, encoder, arguments.model)
    objective = partial(hybrid_mse, pointwise_weight=arguments.pointwise_weight, margin_weight=arguments.margin_weight)
    trainer = RankingTrainer(use_packed_forward(model), encoder, objective, args=training, train_dataset=taught)
    record = {"stage": "distill", "arguments": settings_of(arguments), "training": settings_of(training)}
    record["teacher_scores"] = {"mean": mean, "standard_deviation": deviation}
    train_and_save(trainer, encoder, tokenizer, output_dir, record)


def statistics(scores: Scores, source: str) -> tuple[float, float]:
    """Mean and standard deviation of all teacher scores; raises DataError where they are all equal."""
    values = np.array([score for documents in scores.values() for score in documents.values()])
    if values.size == 0 or values.std() == 0:
        raise DataError(f"{source}: all {values.size} teacher scores are equal: nothing to learn from")
    return float(values.mean()), float(values.std())


def standardised(groups: Sequence[QueryGroup], scores: Scores, mean: float, deviation: float) -> list[TrainingGroup]:
    """The scored documents of each query, their scores brought to mean 0 and deviation 1 over all pairs.

    A teacher on a scale of its own (0 to 1, say) would under margin MSE collapse the student to a constant.
    """
    kept = []
    for group in groups:
        known = scores.get(group.query_id, {})
        documents = tuple(document for document in group.documents if document.doc_id in known)
        targets = tuple((known[document.doc_id] - mean) / deviation for document in documents)
        if documents:
            kept.append(TrainingGroup(group.query_id, group.query, documents, targets))
    return kept


if __name__ == "__main__":
    sys.exit(main())
