"""Flags of transformers' Trainer that it would stumble over later, with a traceback, when the data have been read."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from trainer.data.records import DataError

LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}  # fmt: skip


def check_numbers(training: TrainingArguments) -> None:
    """Raises DataError for sizes that cannot be, and for flags that need others, or several processes."""
    for name, least in LEAST.items():
        if getattr(training, name) < least:
            raise DataError(f"--{name} must be at least {least}, not {getattr(training, name)}")
    if not 0 <= training.seed < 2**32:
        raise DataError(f"--seed must be at least 0 and below 2**32, not {training.seed}")
    if training.save_strategy == "best":
        raise DataError("--save_strategy best is not supported: of its checkpoints, --held_out keeps the best one")
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        raise DataError("--dataloader_persistent_workers needs --dataloader_num_workers")
    if training.train_sampling_strategy == "group_by_length":
        raise DataError("--train_sampling_strategy group_by_length does nothing here: pairs of any length are packed")
    for name in ("fsdp", "ddp_backend"):
        if getattr(training, name) and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise DataError(f"--{name} is for several processes, as torchrun and accelerate launch start them")


def check_optimiser(training: TrainingArguments) -> None:
    """Raises DataError unless the optimiser and its schedule can be made, tried on one number."""
    optimiser: Any = training.optim
    schedule: Any = training.lr_scheduler_type
    settings: Any = training.lr_scheduler_kwargs
    try:
        kind, own = Trainer.get_optimizer_cls_and_kwargs(training)  # another package may be needed
        get_scheduler(schedule, kind([torch.zeros(1, requires_grad=True)], **own), 0, 10, settings)
    except (ImportError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--optim {optimiser.value}, --lr_scheduler_type {schedule.value}: {reason}") from error
