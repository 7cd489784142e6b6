"""Merge a LoRA adapter, kept by --lora_merge false, into the model that it was trained beside.

    python -m trainer.merge --adapter runs/teacher-lora --output_dir runs/teacher

The result is a checkpoint like any other, bit for bit what the stage would have left with --lora_merge true.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peft import TaskType
from transformers import AutoTokenizer

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import CheckpointError, load_causal_lm, load_for_training
from trainer.checkpoints.lora import load_adapters, merge_adapters, read_config
from trainer.checkpoints.save import RECORD_FILE, refuse_existing, save_checkpoint
from trainer.command import command, parse
from trainer.packed.check import control_readings
from trainer.training.run import settings_of

TOLERANCE = 1e-3  # other processors than the one that trained round otherwise


@dataclass
class MergeArguments:
    """What to merge, into what."""

    adapter: str = field(metadata={"help": "Directory that a stage left with --lora_merge false."})
    output_dir: str = field(metadata={"help": "Checkpoint to make."})
    base: str | None = field(
        default=None, metadata={"help": "Checkpoint that it was trained on, if it lies elsewhere by now."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, MergeArguments)
    adapter, output_dir = Path(arguments.adapter), Path(arguments.output_dir)
    refuse_existing(output_dir)
    config = read_config(adapter)
    base = arguments.base or str(config.base_model_name_or_path)
    encoder = PairEncoder.load(adapter)
    record = json.loads((adapter / RECORD_FILE).read_text(encoding="utf-8"))
    model = load_for_training(base) if config.task_type == TaskType.SEQ_CLS else load_causal_lm(base)
    load_adapters(model, adapter, config)
    then, now = np.array(record["control"]), np.array(control_readings(model, encoder))
    difference = np.abs(then - now).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(then).max()):
        raise CheckpointError(
            f"{base}: with the adapter it scores otherwise than at the end of training, by {difference:.2g}: "
            "is it the checkpoint that the adapter was trained on? If that one lies elsewhere, give --base"
        )
    merge_adapters(model)
    merged = {"stage": "merge", "arguments": settings_of(arguments), "adapter": record}
    save_checkpoint(model, encoder, AutoTokenizer.from_pretrained(adapter), output_dir, merged)
    print(f"{output_dir}: {base} with {adapter} merged into it")


if __name__ == "__main__":
    sys.exit(main())
