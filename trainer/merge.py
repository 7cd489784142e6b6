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
from transformers import AutoTokenizer

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.addresses import shown
from trainer.checkpoints.load import NO_CODE, CheckpointError
from trainer.checkpoints.lora import control_readings, load_adapted
from trainer.checkpoints.record import RECORD_FILE
from trainer.checkpoints.save import refuse_existing, save_checkpoint
from trainer.command import command, parse
from trainer.training.run import settings_of

TOLERANCE = 1e-3  # of a reading: processors other than the one that trained round differently


@dataclass
class MergeArguments:
    """The adapter, and the model to merge it into."""

    adapter: str = field(metadata={"help": "Directory that a stage left with --lora_merge false."})
    output_dir: str = field(metadata={"help": "Checkpoint to make."})
    base: str | None = field(
        default=None, metadata={"help": "Checkpoint that it was trained on, if that one has moved since."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, MergeArguments)
    adapter, output_dir = Path(arguments.adapter), Path(arguments.output_dir)
    refuse_existing(output_dir)
    adapted = load_adapted(adapter, arguments.base)
    base = arguments.base or adapted.peft_config["default"].base_model_name_or_path
    encoder = PairEncoder.load(adapter)
    record = json.loads((adapter / RECORD_FILE).read_text(encoding="utf-8"))
    then, now = np.array(record["control"]), np.array(control_readings(adapted.get_base_model(), encoder))
    difference = np.abs(then - now).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(then).max()):
        raise CheckpointError(
            f"{base}: with the adapter its scores differ by {difference:.2g} from those at the end of training: "
            "is it the checkpoint that the adapter was trained on? If that one has moved, give --base"
        )
    merged = adapted.merge_and_unload(safe_merge=True)
    settings = {"stage": "merge", "arguments": settings_of(arguments), "adapter": record}
    save_checkpoint(merged, encoder, AutoTokenizer.from_pretrained(adapter, **NO_CODE), output_dir, settings)
    print(shown(f"{output_dir}: {base} with {adapter} merged into it"))


if __name__ == "__main__":
    sys.exit(main())
