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

from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.command import command, parse
from trainer.data.records import JudgedDocument, QueryGroup
from trainer.training.batches import TrainingGroup
from trainer.training.run import StageArguments, begin, train_and_save
from trainer.training.streams import DataArguments, training_groups
from trainer.training.trainers import LanguageTrainer


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
    arguments, data, lora, training = parse(argv, PretrainArguments, DataArguments, LoraArguments, StageArguments)
    run = begin(training, arguments, data, lora)
    llm = load_checkpoint(arguments.model, causal=True, seed=training.seed)
    add_adapters(llm.model, lora, arguments.model)
    unclicked = "no document has clicks; for judged data without clicks give --min_label"
    groups = training_groups(data, partial(clicked, arguments=arguments), run.training, unclicked)
    trainer = LanguageTrainer(llm.model, llm.encoder, run.training, train_dataset=groups)
    train_and_save(trainer, llm, run, {"stage": "pretrain"}, lora.lora_merge)


def clicked(group: QueryGroup, arguments: PretrainArguments) -> TrainingGroup | None:
    """The clicked documents of a query (or those at or above ``min_label``) that have a text, and their weights."""
    weighted = [
        (each, _weight(each, arguments)) for each in group.documents if each.title.strip() or each.summary.strip()
    ]
    chosen = [(document, weight) for document, weight in weighted if weight > 0]
    if not chosen:
        return None
    documents, weights = zip(*chosen, strict=True)
    return TrainingGroup(group.query_id, group.query, documents, weights)


def _weight(document: JudgedDocument, arguments: PretrainArguments) -> float:
    if arguments.min_label is not None:
        return float(document.label is not None and document.label >= arguments.min_label)
    if arguments.click_weight == "log":
        return math.log2(1 + document.clicks)
    return float(document.clicks if arguments.click_weight == "linear" else document.clicks > 0)


if __name__ == "__main__":
    sys.exit(main())
