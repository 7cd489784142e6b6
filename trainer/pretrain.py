"""Stage 1, continued pre-training: the LLM learns to write a clicked title and summary, given the query.

    python -m trainer.pretrain --model runs/llm --data log.jsonl --output_dir runs/llm-cpt

Source: arXiv 2411.04539, section 3.1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from trainer.checkpoints.lora import LoraArguments
from trainer.command import command, parse
from trainer.data.records import DataError, JudgedDocument, QueryGroup, iter_groups
from trainer.training.adapted import Adapted
from trainer.training.batches import TrainingGroup
from trainer.training.held_out import LOSS, HeldOut, HeldOutArguments
from trainer.training.run import StageArguments, begin, train_and_save
from trainer.training.streams import DataArguments, Take, training_groups
from trainer.training.trainers import LanguageTrainer

OBJECTIVE = "next token of title and summary"
UNCLICKED = "no document has clicks; for judged data without clicks give --min_label"


@dataclass
class PretrainArguments:
    """The checkpoint to train, and the documents that count as clicked."""

    model: str = field(metadata={"help": "Checkpoint of a causal LM (see trainer.init)."})
    min_label: float | None = field(
        default=None, metadata={"help": "For sets without clicks: documents at or above this label, each of weight 1."}
    )
    click_weight: Literal["none", "log", "linear"] = field(
        default="log",
        metadata={"help": "What a document's clicks c make of its weight: 1, log2(1 + c), or c."},
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, data, judge, lora, training = parse(
        argv, PretrainArguments, DataArguments, HeldOutArguments, LoraArguments, StageArguments
    )
    start = Adapted(arguments.model, True, lora, training)
    take = partial(clicked, arguments=arguments)
    held_out = read_held_out(judge, take)
    run = begin(training, arguments, data, judge, lora, held_out=held_out)
    llm = start.load()
    groups = training_groups(data, take, run.training, UNCLICKED, held_out=held_out)
    trainer = LanguageTrainer(llm.model, llm.encoder, run.training, held_out=held_out, train_dataset=groups)
    train_and_save(trainer, llm, run, {"stage": "pretrain", "objective": OBJECTIVE}, start.result)


def read_held_out(arguments: HeldOutArguments, take: Take) -> HeldOut | None:
    """None without ``--held_out``. Raises DataError where no document of it would be trained on."""
    if not arguments.held_out:
        return None
    groups = [chosen for group in iter_groups(*arguments.held_out) if (chosen := take(group)) and group.weight]
    if not groups:
        raise DataError(f"{arguments.held_out[0]}: {UNCLICKED}: nothing judges the model")
    return HeldOut(groups, LOSS, arguments.early_stop)


def clicked(group: QueryGroup, arguments: PretrainArguments) -> TrainingGroup | None:
    """The clicked documents of a query (or those at or above ``min_label``) that have a text, and their weights."""
    weighted = [
        (each, _weight(each, arguments)) for each in group.documents if each.title.strip() or each.summary.strip()
    ]
    chosen = [(document, weight) for document, weight in weighted if weight > 0]
    if not chosen:
        return None
    documents, weights = zip(*chosen, strict=True)
    return TrainingGroup(group.query_id, group.query, documents, weights, weight=group.weight)


def _weight(document: JudgedDocument, arguments: PretrainArguments) -> float:
    if arguments.min_label is not None:
        return float(document.label is not None and document.label >= arguments.min_label)
    if arguments.click_weight == "log":
        return math.log2(1 + document.clicks)
    return float(document.clicks if arguments.click_weight == "linear" else document.clicks > 0)


if __name__ == "__main__":
    sys.exit(main())
