"""Stage 2, rank fine-tuning: a score head on the token that stands for the pair, under a rank loss.

    python -m trainer.rank_sft --model runs/llm-cpt --data train.jsonl --output_dir runs/teacher

A decoder scores at its last token, ``</s>``; an encoder, trained so on labels alone, at its first.
Source: arXiv 2411.04539, section 3.2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from trainer.collate import TrainingGroup
from trainer.data import DataError, QueryGroup, read_groups
from trainer.held_out import HeldOutArguments, read_held_out
from trainer.lora import LoraArguments, add_adapters
from trainer.losses import lambda_rank, listwise_softmax, pairwise_hinge, pairwise_logistic
from trainer.models import check_packing, load_for_training, use_packed_forward
from trainer.stage import StageArguments, begin, command, load_encoder, parse, train_and_save
from trainer.training import Objective, RankingTrainer, check_documents_per_query, drawn

PAIRWISE = {"pairwise_logistic": pairwise_logistic, "pairwise_hinge": pairwise_hinge}
LISTWISE = {"lambda_rank": lambda_rank, "listwise_softmax": listwise_softmax}


@dataclass
class RankArguments:
    """What to train on."""

    model: str = field(metadata={"help": "Checkpoint of a causal LM or an encoder (see trainer.init)."})
    data: list[str] = field(metadata={"help": "Judged queries (JSONL, Parquet)."})
    objective: Literal["pairwise_logistic", "pairwise_hinge", "lambda_rank", "listwise_softmax"] = field(
        default="pairwise_logistic", metadata={"help": "Loss over a query's documents, see trainer/losses.py."}
    )
    gap_weights: bool = field(
        default=False, metadata={"help": "Weigh each pair by the gap of its labels (the pairwise objectives)."}
    )
    documents_per_query: int | None = field(
        default=None, metadata={"help": "Documents of a query in one step, drawn anew each time; all by default."}
    )

    def __post_init__(self) -> None:
        if self.gap_weights and self.objective not in PAIRWISE:
            raise DataError(f"--gap_weights is for the pairwise objectives, not for {self.objective}")
        check_documents_per_query(self.documents_per_query)


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, looks, lora, training = parse(argv, RankArguments, HeldOutArguments, LoraArguments, StageArguments)
    run = begin(training, arguments, looks, lora)
    groups = judged([group for path in arguments.data for group in read_groups(path)])
    encoder, tokenizer = load_encoder(arguments.model)
    model = load_for_training(arguments.model)
    check_packing(model, encoder, arguments.model)
    add_adapters(model, lora, arguments.model)
    dataset = drawn(groups, arguments.documents_per_query, training.seed)
    trainer = RankingTrainer(
        use_packed_forward(model), encoder, objective(arguments), training,
        held_out=read_held_out(looks), train_dataset=dataset,
    )  # fmt: skip
    train_and_save(trainer, encoder, tokenizer, run, {"stage": "rank_sft"}, lora.lora_merge)


def objective(arguments: RankArguments) -> Objective:
    if arguments.objective in PAIRWISE:
        return partial(PAIRWISE[arguments.objective], gap_weights=arguments.gap_weights)
    return LISTWISE[arguments.objective]


def judged(groups: Sequence[QueryGroup]) -> list[TrainingGroup]:
    """The judged documents of each query that has two different labels; other queries teach no order."""
    kept = []
    for group in groups:
        documents = tuple(document for document in group.documents if document.label is not None)
        labels = tuple(document.label for document in documents if document.label is not None)
        if len(set(labels)) > 1:
            kept.append(TrainingGroup(group.query_id, group.query, documents, labels))
    if not kept:
        raise DataError("no query has documents with different labels: nothing to learn an order from")
    if len(kept) < len(groups):
        print(
            f"{len(groups) - len(kept)} of {len(groups)} queries have no two different labels: skipped", file=sys.stderr
        )
    return kept


if __name__ == "__main__":
    sys.exit(main())
