"""A training stage from its first line to its result: arguments, the beginning, the training, the saved model."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from trainer.checkpoints.load import Checkpoint
from trainer.checkpoints.lora import merge_adapters
from trainer.checkpoints.save import refuse_existing, save_checkpoint
from trainer.data.records import DataError
from trainer.training.held_out import evaluation_settings
from trainer.training.memory import naming_flags
from trainer.training.processes import decided_by_first
from trainer.training.resume import Resumable, ResumeError, checkpoint_of, new_directory, stamps
from trainer.training.sharded import WholeModel, check_sharding, check_whole_when_loaded, sharding_of

LOGS = "logs"
# Settings that may differ when a run resumes: they change no weight.
FREE = {
    "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor", "log_level", "logging_dir", "logging_steps",
    "report_to", "resume_from_checkpoint", "run_name", "save_steps", "save_total_limit",
}  # fmt: skip
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
    save_strategy: str = field(default="steps", metadata={"help": "When to keep a checkpoint to resume from."})
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


@dataclass(frozen=True)
class Run:
    """A stage that begins, or one that was interrupted and resumes."""

    output_dir: Path  # where the result goes
    directory: Path  # where checkpoints and the loss curve lie until then
    training: StageArguments  # the Trainer's arguments, for a run in that directory
    settings: dict[str, Any]  # what must be the same when the run resumes, and is saved beside the result
    checkpoint: Path | None  # to resume from


def begin(training: StageArguments, *arguments: Any, evaluated: bool = False) -> Run:
    """Start a stage, or resume the one that was interrupted here. Raises ResumeError for changed settings.

    ``training`` and ``arguments`` are what the user chose, and stay as they are; ``evaluated`` runs evaluate each of
    their checkpoints on held-out queries.
    """
    output_dir = Path(str(training.output_dir))
    refuse_existing(output_dir)
    check_whole_when_loaded()
    directory = output_dir.with_name(f".{output_dir.name}.run")
    prepared = _prepared(training, directory, evaluated)
    chosen = {name: value for each in arguments for name, value in settings_of(each).items()}
    settings = {
        "arguments": chosen,
        "training": settings_of(training),
        "processes": training.world_size,
        "sharding": sharding_of(training),
        "files": stamps(_texts(chosen.values())),
    }
    free = FREE - {"save_steps"} if evaluated else FREE  # the best checkpoint depends on when they are made
    checkpoint = decided_by_first(lambda: checkpoint_of(directory, settings, free))
    if checkpoint is not None and not checkpoint.is_dir():
        raise ResumeError(
            f"{checkpoint}: process {training.process_index} does not see it: all machines need --output_dir"
        )
    if checkpoint is not None and training.should_save:
        print(f"{output_dir}: resumes from {checkpoint.name.replace('-', ' ')}", file=sys.stderr)
    return Run(output_dir, directory, prepared, settings, checkpoint)


def _prepared(training: StageArguments, directory: Path, evaluated: bool) -> StageArguments:
    """The Trainer's arguments for a run in ``directory``: nothing else changes what the user chose."""
    prepared = copy.copy(training)
    prepared.output_dir = str(directory)
    loading: Any = training.accelerator_config
    # Dispatched, all tensors of a batch would be cut by the rows of the first; those of packed ones differ in rows.
    prepared.accelerator_config = replace(loading, dispatch_batches=False)
    if evaluated:
        vars(prepared).update(evaluation_settings(training))
    return prepared


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))


def train_and_save(
    trainer: Trainer, checkpoint: Checkpoint, run: Run, record: dict[str, Any], merge: bool = True
) -> None:
    """Train, and save the model as the run's result, with ``record`` and the loss curve beside it.

    ``merge`` adds LoRA adapters to the model that they were trained beside; else they are the result.
    """
    if not len(trainer.get_train_dataloader()):
        raise DataError("nothing was trained: an epoch has no whole step, and --dataloader_drop_last drops the others")
    check_sharding(trainer)
    whole = WholeModel(trainer)
    if run.checkpoint is None and trainer.is_world_process_zero():
        new_directory(run.directory, run.settings)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(run.directory / LOGS)
    resumable = Resumable(trainer, run.checkpoint)
    trainer.add_callback(resumable)
    with naming_flags(*LESS_MEMORY), resumable.listening():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
    if result.global_step == 0:
        raise DataError("nothing was trained: --num_train_epochs leaves no step")
    model = whole.gather()
    if trainer.is_world_process_zero():
        if merge:
            merge_adapters(model)
        record = {**record, **run.settings, "metrics": result.metrics, **_curves(trainer)}
        save_checkpoint(model, checkpoint.encoder, checkpoint.tokenizer, run.output_dir, record)
        if (run.directory / LOGS).exists():
            (run.directory / LOGS).rename(run.output_dir / LOGS)
        shutil.rmtree(run.directory)


def _curves(trainer: Trainer) -> dict[str, Any]:
    history = trainer.state.log_history
    return {
        "loss_curve": [entry for entry in history if "loss" in entry],
        "held_out": [entry for entry in history if any(name.startswith("eval_") for name in entry)],
    }


def settings_of(arguments: Any) -> dict[str, Any]:
    """Resolved settings as plain data, for ``training.json``."""
    return dict(arguments.to_dict() if isinstance(arguments, TrainingArguments) else asdict(arguments))
