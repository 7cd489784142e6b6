"""Flags of transformers' Trainer: those that are refused, and those that may change when a run resumes.

Over some that are refused it would stumble later, with a traceback, when the data have been read.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from trainer.data.records import DataError

LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}  # fmt: skip

# Settings that may differ when a run resumes: they change no weight.
FREE = {
    "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor", "log_level", "logging_dir", "logging_steps",
    "report_to", "resume_from_checkpoint", "run_name", "save_steps", "save_total_limit",
    "project", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id",
    "hub_model_id", "hub_private_repo", "hub_revision", "push_to_hub",
}  # fmt: skip
# Settings of transformers' Trainer that would do nothing here, or break what this project promises.
REFUSED = {
    "label_smoothing_factor": "the objectives have no classes to smooth",
    "resume_from_checkpoint": "the same command, started again, resumes by itself",
    "metric_for_best_model": "--measure names it",
    "greater_is_better": "it is, for every measure",
    "load_best_model_at_end": "--held_out does",
    "eval_strategy": "--held_out is evaluated with every checkpoint, see --save_steps",
    "save_only_model": "no run could resume",
    "hub_strategy": "the result is pushed once, at the end",
    "hub_always_push": "the result is pushed once, at the end",
    "auto_find_batch_size": "it changes the step: --token_budget computes the same one in parts",
    "ignore_data_skip": "a run that resumes would see other data",
    "remove_unused_columns": "records are no columns",
    "use_liger_kernel": "the forward is this project's own",
    "bf16_full_eval": "--held_out is scored in the training's precision, with a float32 head",
    "fp16_full_eval": "--held_out is scored in the training's precision, with a float32 head",
}


def check_supported(training: TrainingArguments) -> None:
    """Raises DataError for flags of REFUSED that were given."""
    defaults = {each.name: each.default for each in fields(training)}
    for name, reason in REFUSED.items():
        if getattr(training, name) != defaults[name]:
            raise DataError(f"--{name} is not supported: {reason}")


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
