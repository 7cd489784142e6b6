"""A training stage from its first line to its result: arguments, the beginning, the training, the saved model."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from client.errors import DisRankerError
from client.files import naming
from trainer.addresses import shown
from trainer.checkpoints.hub import Push
from trainer.checkpoints.load import Checkpoint, Model
from trainer.checkpoints.save import refuse_existing, save_checkpoint
from trainer.data.records import DataError
from trainer.packed.attention import Kernel, check_kernel
from trainer.scoring.memory import naming_flags
from trainer.storage import discard
from trainer.training.flags import FREE, check_numbers, check_optimiser, check_supported
from trainer.training.held_out import HeldOut, evaluation_settings
from trainer.training.processes import decided_by_first
from trainer.training.resumable import Resumable
from trainer.training.resume import (
    ResumeError,
    checkpoint_of,
    drop_broken_checkpoints,
    held,
    metrics_of,
    new_directory,
    stamps,
)
from trainer.training.sharded import WholeModel, check_sharding, check_whole_when_loaded, sharding_of
from trainer.training.trackers import prepare_trackers

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
    attention: Kernel = field(
        default="dense", metadata={"help": "Kernel of attention in packed rows; flex and varlen are for GPUs."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: records are no columns."})

    def __post_init__(self) -> None:
        check_supported(self)
        check_numbers(self)
        several = "LOCAL_RANK" in os.environ and sharding_of(self) == "none"
        if not torch.accelerator.is_available() and (self.bf16 or several):
            self.use_cpu = True  # transformers wants to be told, or several processes are several runs
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise DataError(f"--learning_rate must be a finite number of at least 0, not {self.learning_rate}")
        known = {"none", "all", *get_available_reporting_integrations()}
        if unknown := sorted(
            {self.report_to} - known if isinstance(self.report_to, str) else set(self.report_to) - known
        ):
            raise DataError(f"--report_to {unknown[0]} is not installed; here are {', '.join(sorted(known))}")
        if self.fp16 and not torch.accelerator.is_available():
            raise DataError("--fp16 needs a GPU")
        check_kernel(self.attention, self.device, lowered=self.mixed_precision != "no", training=True)
        check_optimiser(self)


@dataclass(frozen=True)
class Run:
    """A stage that begins, or one that was interrupted and resumes."""

    output_dir: Path  # where the result goes
    directory: Path  # where checkpoints and the loss curve lie until then
    training: StageArguments  # the Trainer's arguments, for a run in that directory
    keep: int | None  # checkpoints
    settings: dict[str, Any]  # what must be the same when the run resumes, and is saved beside the result
    checkpoint: Path | None  # to resume from
    push: Push | None = None  # of the result, to a hub


def begin(training: StageArguments, *arguments: Any, held_out: HeldOut | None = None) -> Run:
    """Start a stage, or resume the one that was interrupted here. Raises ResumeError for changed settings.

    ``training`` and ``arguments`` are what the user chose, and stay as they are. Each of the run's checkpoints is
    evaluated on the ``held_out`` queries, if there are any.
    """
    output_dir = Path(str(training.output_dir))
    push = Push.of(training)
    refuse_existing(output_dir)
    check_whole_when_loaded()
    if training.eval_on_start and held_out is None:
        raise DataError("--eval_on_start needs --held_out")
    directory = output_dir.with_name(f".{output_dir.name}.run")
    prepared = _prepared(training, directory, held_out)
    chosen = {name: value for each in arguments for name, value in settings_of(each).items()}
    if push and not chosen.get("lora_merge", True):
        raise DataError("--push_to_hub pushes whole models: leave --lora_merge true, or push what trainer.merge makes")
    settings = {
        "arguments": chosen,
        "training": settings_of(training),
        "processes": training.world_size,
        "sharding": sharding_of(training),
        "files": stamps(_texts(chosen.values())),
    }
    free = FREE - {"save_steps"} if held_out else FREE  # the best checkpoint depends on when they are made
    checkpoint = decided_by_first(lambda: checkpoint_of(directory, settings, free))
    if checkpoint is not None and not checkpoint.is_dir():
        raise ResumeError(
            f"{checkpoint}: process {training.process_index} does not see it: all machines need --output_dir"
        )
    if checkpoint is not None and training.should_save:
        print(shown(f"{output_dir}: resumes from {checkpoint.name.replace('-', ' ')}"), file=sys.stderr)
    return Run(output_dir, directory, prepared, training.save_total_limit, settings, checkpoint, push)


def _prepared(training: StageArguments, directory: Path, held_out: HeldOut | None) -> StageArguments:
    """The Trainer's arguments for a run in ``directory``: nothing else changes what the user chose."""
    prepared = copy.copy(training)
    prepared.output_dir, prepared.save_total_limit = str(directory), None  # the run removes checkpoints itself
    prepared.push_to_hub = False  # the Trainer would push checkpoints on the way
    prepared.run_name = training.run_name or Path(str(training.output_dir)).name  # for a tracker
    loading: Any = training.accelerator_config
    # Dispatched, all tensors of a batch would be cut by the rows of the first; those of packed ones differ in rows.
    prepared.accelerator_config = replace(loading, dispatch_batches=False)
    if held_out is not None:
        vars(prepared).update(evaluation_settings(training, held_out.measure))
    return prepared


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))


def train_and_save(
    trainer: Trainer,
    checkpoint: Checkpoint,
    run: Run,
    record: dict[str, Any],
    result: Callable[[Model], Model] = lambda model: model,
) -> None:
    """Train, and save the ``result`` of the trained model, with ``record`` and the loss curve beside it; then push."""
    if not len(trainer.get_train_dataloader()):
        raise DataError("nothing was trained: an epoch has no whole step, and --dataloader_drop_last drops the others")
    check_sharding(trainer)
    whole = WholeModel(trainer)
    first = trainer.is_world_process_zero()
    with held(run.directory) if first else nullcontext():
        if first and run.checkpoint is None:
            new_directory(run.directory, run.settings)
        try:
            metrics = _train(trainer, run)
        except DisRankerError:
            if first:  # a checkpoint that is half written takes room
                drop_broken_checkpoints(run.directory)
            raise
        model = whole.gather()
        if first:
            record = {**record, **run.settings, **_amounts(trainer), "metrics": metrics, **_curves(trainer)}
            logs = run.directory / LOGS
            save_checkpoint(result(model), checkpoint.encoder, checkpoint.tokenizer, run.output_dir, record, logs)
            discard(run.directory)
    if first and run.push:
        print(run.push.checkpoint(run.output_dir))


def _amounts(trainer: Trainer) -> dict[str, int]:
    """The number of queries and pairs that were trained on, and of steps."""
    data: Any = trainer.train_dataset
    return {"queries": len(data), "pairs": data.pairs, "steps": trainer.state.global_step}


def _train(trainer: Trainer, run: Run) -> dict[str, float]:
    """Train, from the run's checkpoint if it has one, and return the Trainer's metrics."""
    prepare_trackers(trainer, run.directory / LOGS)
    resumable = Resumable(trainer, run.checkpoint, run.keep)
    trainer.add_callback(resumable)
    ended = metrics_of(run.checkpoint)
    if ended is not None:  # only the result is left to be saved
        trainer._run_epoch = lambda **_: None  # type: ignore[method-assign]
    with naming(run.directory), naming_flags(*LESS_MEMORY), resumable.listening():
        result = trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
    if result.global_step == 0:
        raise DataError("nothing was trained: --num_train_epochs leaves no step")
    return ended or result.metrics


def _curves(trainer: Trainer) -> dict[str, Any]:
    history = trainer.state.log_history
    return {
        "loss_curve": [entry for entry in history if "loss" in entry],
        "held_out": [entry for entry in history if any(name.startswith("eval_") for name in entry)],
    }


def settings_of(arguments: Any) -> dict[str, Any]:
    """Resolved settings as plain data, for ``training.json``."""
    return dict(arguments.to_dict() if isinstance(arguments, TrainingArguments) else asdict(arguments))
