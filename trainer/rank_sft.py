"""Stage 2, rank fine-tuning: a score head on the token that stands for the pair, under a rank loss.

    python -m trainer.rank_sft --model runs/llm-cpt --data train.jsonl --output_dir runs/teacher

A decoder scores at its last token, ``</s>``. An encoder, which this stage trains on labels without a teacher, scores
at its first.
Source: arXiv 2411.04539, section 3.2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from trainer.checkpoints.lora import LoraArguments
from trainer.command import command, parse
from trainer.data.records import DataError, JudgedDocument, QueryGroup
from trainer.training import losses
from trainer.training.adapted import Adapted
from trainer.training.batches import TrainingGroup
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

PAIRWISE = ("pairwise_logistic", "pairwise_hinge")


@dataclass
class RankArguments:
    """The checkpoint to train, and the loss."""

    model: str = field(metadata={"help": "Checkpoint of a causal LM or an encoder (see trainer.init)."})
    objective: Literal[
        "pairwise_logistic",
        "pairwise_hinge",
        "lambda_rank",
        "listwise_softmax",
        "list_mle",
        "localized_contrastive",
        "binary_cross_entropy",
    ] = field(
        default="pairwise_logistic", metadata={"help": "Loss over a query's documents, see trainer/training/losses.py."}
    )
    gap_weights: bool = field(
        default=False, metadata={"help": "Weigh each pair by the gap of its labels (the pairwise objectives)."}
    )
    mean_over: MeanOver = field(default="queries", metadata={"help": MEAN_OVER_HELP})

    def __post_init__(self) -> None:
        if self.gap_weights and self.objective not in PAIRWISE:
            raise DataError(f"--gap_weights is for the pairwise objectives, not for {self.objective}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, data, judge, lora, training = parse(
        argv, RankArguments, DataArguments, JudgedArguments, LoraArguments, StageArguments
    )
    check_documents_per_query(data.documents_per_query)
    start = Adapted(arguments.model, False, lora, training)
    held_out = read_held_out(judge)
    run = begin(training, arguments, data, judge, lora, held_out=held_out)
    ranker = start.load()
    targets = JudgedTargets()
    alike = "no two documents have different labels"
    groups = training_groups(data, targets, run.training, alike, targets.report, held_out)
    terms = objective(arguments)
    trainer = RankingTrainer(
        ranker.model, ranker.encoder, terms, run.training,
        by_count=arguments.mean_over == "pairs", held_out=held_out, train_dataset=groups,
    )  # fmt: skip
    train_and_save(trainer, ranker, run, {"stage": "rank_sft", "objective": described(terms)}, start.result)


def objective(arguments: RankArguments) -> list[Term]:
    loss = getattr(losses, arguments.objective)
    return [Term(1.0, partial(loss, gap_weights=True) if arguments.gap_weights else loss)]


class JudgedTargets:
    """Gives the judged documents of a query, or None where all have the same label and teach no order.

    A text that one query has twice, with different labels, is trained on as it is, and counted.
    """

    def __init__(self) -> None:
        self._contradictions, self._first = 0, ""

    def __call__(self, group: QueryGroup) -> TrainingGroup | None:
        documents = tuple(document for document in group.documents if document.label is not None)
        labels = tuple(document.label for document in documents if document.label is not None)
        seen: dict[tuple[str, str], JudgedDocument] = {}
        for document in documents:
            other = seen.setdefault((document.title, document.summary), document)
            if other.label != document.label:
                self._contradictions += 1
                self._first = self._first or (
                    f"documents {other.doc_id!r} ({other.label:g}) and {document.doc_id!r} ({document.label:g}) "
                    f"of query {group.query_id!r}"
                )
        if len(set(labels)) < 2:
            return None
        return TrainingGroup(group.query_id, group.query, documents, labels, weight=group.weight)

    def report(self) -> None:
        if self._contradictions:
            print(f"{self._contradictions:,} texts have two labels, the first are {self._first}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
