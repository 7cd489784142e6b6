"""What the training stages share: their arguments, how they begin, train and end, and their commands."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncoder
from trainer.checkpoints.load import CheckpointError, require_checkpoint
from trainer.checkpoints.lora import merge_adapters
from trainer.checkpoints.save import refuse_existing, save_checkpoint
from trainer.packed.check import control_readings
from trainer.training.memory import naming_flags
from trainer.training.processes import decided_by_first
from trainer.training.resume import (
    Resumable,
    ResumeError,
    checkpoint_of,
    stamps,
    start,
)
from trainer.training.sharded import WholeModel, check_sharding, check_whole_when_loaded, sharding_of

LOGS = "logs"
LESS_MEMORY = (
    "a smaller --token_budget (a few rows of the checkpoint: the gradient stays as it is)",
    "--activation_checkpointing true",
    "--bf16 true on a GPU",
    "fewer --per_device_train_batch_size, with more --gradient_accumulation_steps, or --documents_per_query",
)


@dataclass
class StageArguments(TrainingArguments):
    """Every argument of transformers' Trainer, with defaults that suit ranking."""

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Queries per device and step."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps, or below 1 a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between points of the loss curve."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are no numbers."})
    report_to: str = field(default="tensorboard", metadata={"help": "Where the loss curve goes."})
    save_strategy: str = field(default="steps", metadata={"help": "When to keep a checkpoint to go on from."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep while the run lasts."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available, metadata={"help": "For GPUs."})
    token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Token slots of one forward pass on a device; a larger step goes in parts, each computed twice."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: records are no columns."})


def load_encoder(checkpoint: str) -> tuple[PairEncoder, Any]:
    """The pair encoder of a checkpoint of ours and its tokenizer. Raises CheckpointError where there is none."""
    require_checkpoint(checkpoint)
    if not (Path(checkpoint) / ENCODING_FILE).is_file():
        raise CheckpointError(f"{checkpoint}: no {ENCODING_FILE}; make a checkpoint with python -m trainer.init first")
    return PairEncoder.load(checkpoint), AutoTokenizer.from_pretrained(checkpoint)


@dataclass(frozen=True)
class Run:
    """A stage on its way: where its result goes, where it lies until then, and the checkpoint to go on from."""

    output_dir: Path
    directory: Path
    settings: dict[str, Any]
    checkpoint: Path | None


def begin(training: StageArguments, *arguments: Any) -> Run:
    """Start a stage, or go on with the one that was interrupted here. Raises ResumeError for changed settings."""
    output_dir = Path(str(training.output_dir))
    refuse_existing(output_dir)
    check_whole_when_loaded()
    chosen = {name: value for each in arguments for name, value in settings_of(each).items()}
    settings = {
        "arguments": chosen,
        "training": settings_of(training),
        "processes": training.world_size,
        "sharding": sharding_of(training),
        "files": stamps(_texts(chosen.values())),
    }
    directory = output_dir.with_name(f".{output_dir.name}.run")
    checkpoint = decided_by_first(lambda: checkpoint_of(directory, settings))
    if checkpoint is not None and not checkpoint.is_dir():
        raise ResumeError(
            f"{checkpoint}: process {training.process_index} does not see it: all machines need --output_dir"
        )
    set_seed(training.seed)  # a score head that is new is drawn before the Trainer does so
    training.output_dir = str(directory)
    loading: Any = training.accelerator_config
    loading.dispatch_batches = False  # it would cut all tensors by the rows of the first: packed ones have others
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory / LOGS)
    if checkpoint is not None and training.should_save:
        print(f"{output_dir}: goes on from {checkpoint.name.replace('-', ' ')}", file=sys.stderr)
    return Run(output_dir, directory, settings, checkpoint)


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def train_and_save(
    trainer: Trainer, encoder: PairEncoder, tokenizer: Any, run: Run, record: dict[str, Any], merge: bool = True
) -> None:
    """Run the trainer and save its model as the run's result, with ``record`` and the loss curve beside it.

    ``merge`` adds LoRA adapters to the model that they were trained beside; else they are the result.
    """
    check_sharding(trainer)
    whole = WholeModel(trainer)
    if run.checkpoint is None and trainer.is_world_process_zero():
        start(run.directory, run.settings)
    resumable = Resumable(trainer, run.checkpoint)
    trainer.add_callback(resumable)
    with naming_flags(*LESS_MEMORY), resumable.listening():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
    model = whole.gather()
    if trainer.is_world_process_zero():
        curve = [entry for entry in trainer.state.log_history if "loss" in entry]
        looks = [entry for entry in trainer.state.log_history if any(name.startswith("eval_") for name in entry)]
        record = {**record, **run.settings, "metrics": result.metrics, "loss_curve": curve, "held_out": looks}
        if merge:
            merge_adapters(model)
        else:
            record["control"] = control_readings(model, encoder)
        save_checkpoint(model, encoder, tokenizer, run.output_dir, record)
        if (run.directory / LOGS).exists():
            (run.directory / LOGS).rename(run.output_dir / LOGS)
        shutil.rmtree(run.directory)


def settings_of(arguments: Any) -> dict[str, Any]:
    """Resolved settings as plain data, for ``training.json``."""
    return dict(arguments.to_dict() if isinstance(arguments, TrainingArguments) else asdict(arguments))
