"""Runs that may be interrupted at any moment: whole checkpoints, and settings that must not change.

While a stage runs, its directory lies beside the one that it will become. It holds ``settings.json``
and checkpoints of transformers' Trainer, each with ``whole.json``, which is written last: a
checkpoint without one was cut off and is removed.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.training.processes import highest, mean

SETTINGS_FILE = "settings.json"
WHOLE_FILE = "whole.json"
STOPPING = (signal.SIGTERM, signal.SIGINT)

# What may differ when a run goes on: it changes no weight and no score (where a teacher is served, its identity does).
FREE = {
    "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor", "in_flight", "log_level", "logging_dir",
    "logging_steps", "report_to", "resume_from_checkpoint", "rows_per_batch", "run_name", "save_steps",
    "save_total_limit", "timeout_s", "triton", "triton_model",
}  # fmt: skip


class ResumeError(ValueError):
    """A directory of an interrupted run that this command cannot go on with."""


class InterruptedRunError(Exception):
    """A signal stopped the run; its newest checkpoint is whole, and the same command goes on from there."""

    def __init__(self, received: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(received).name} at step {step}; the same command goes on there")
        self.exit_code = 128 + received


class NonFiniteLossError(Exception):
    """A loss that is no number; raised before it changed a weight."""


def checkpoint_of(directory: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint from which the run in ``directory`` goes on, if there is one.

    Raises ResumeError, which lists the differences, where that run had other settings.
    """
    checkpoint = newest_whole(directory)
    if checkpoint is not None:
        _refuse_changes(directory, settings)
    return checkpoint


def open_shards(directory: Path, settings: dict[str, Any]) -> None:
    """Make a directory for shards, or go on with the one there. Raises ResumeError for one of other settings."""
    if (directory / SETTINGS_FILE).is_file():
        _refuse_changes(directory, settings)
    else:
        start(directory, settings)


def _refuse_changes(directory: Path, settings: dict[str, Any]) -> None:
    before = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
    chosen_among = settings.get("arguments", {}).get("held_out")  # checkpoints, by when they are made
    if changes := differences(before, as_saved(settings), FREE - {"save_steps"} if chosen_among else FREE):
        raise ResumeError(
            f"{directory}: an interrupted run with other settings ({'; '.join(changes)}): "
            "give it those again, or remove it to start anew"
        )


def start(directory: Path, settings: dict[str, Any]) -> None:
    """Make the directory of a run that begins."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / SETTINGS_FILE).write_text(json.dumps(as_saved(settings), indent=2) + "\n", encoding="utf-8")


def stamps(names: Iterable[str]) -> dict[str, str]:
    """Size and time of the files among ``names``, and in directories among them: a run does not go on with others."""
    paths = [path for name in names for path in (sorted(Path(name).glob("*")) if Path(name).is_dir() else [Path(name)])]
    files = ((path, path.stat()) for path in paths if path.is_file())
    return {str(path): f"{stat.st_size} bytes of {stat.st_mtime_ns}" for path, stat in files}


def as_saved(settings: dict[str, Any]) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return saved


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str] = FREE, name: str = "") -> list[str]:
    """``name: before -> now`` of every setting that is not among the ``free`` ones and not the same."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, free, key)
        elif key not in free and left != right:
            found.append(f"{key}: {left} -> {right}")
    return found


def newest_whole(directory: Path) -> Path | None:
    """The checkpoint of the latest step that is whole and not the run's last; the others after it are removed.

    From the last step the Trainer would take one more.
    """
    steps = {int(path.name.rpartition("-")[2]): path for path in directory.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        if (steps[step] / WHOLE_FILE).is_file() and (directory / SETTINGS_FILE).is_file():
            state = json.loads((steps[step] / "trainer_state.json").read_text(encoding="utf-8"))
            if step < state["max_steps"]:
                return steps[step]
        shutil.rmtree(steps[step])
    return None


class Resumable(TrainerCallback):
    """Marks checkpoints as whole, restores what the Trainer forgets, and turns a signal into a checkpoint."""

    def __init__(self, trainer: Trainer, checkpoint: Path | None) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint
        self._received = self._stopped_by = 0  # the number of a signal, here and as all processes agreed

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block trains, a signal ends it with a checkpoint; it then ends with InterruptedRunError."""
        before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}

        def receive(number: int, frame: FrameType | None) -> None:
            self._received = number
            signal.signal(number, before[number])  # a second one is no longer put off

        for number in STOPPING:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for stopping, handler in before.items():
                signal.signal(stopping, handler)
        if self._stopped_by:
            raise InterruptedRunError(self._stopped_by, self._trainer.state.global_step)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._checkpoint is not None:  # the loss since the last point of the curve
            whole = json.loads((self._checkpoint / WHOLE_FILE).read_text(encoding="utf-8"))
            self._trainer._tr_loss = torch.tensor(whole["loss"], device=args.device)
            self._trainer._globalstep_last_logged = whole["logged"]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset: Any = self._trainer.train_dataset
        if hasattr(dataset, "go_on_at"):
            dataset.go_on_at(state.epoch or 0.0)
        else:  # Accelerate forgets it where batches are skipped
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # all that is left is to save the result
            control.should_save = control.should_save and args.load_best_model_at_end
        elif stopped_by := highest(self._received, args.device):  # it reaches processes in different steps
            self._stopped_by = stopped_by
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = mean(self._trainer._tr_loss)  # and so every process has written its part of the checkpoint
        if args.load_best_model_at_end and state.best_global_step:
            # Of shards, the Trainer may look for the directory before it is there, and then in some processes only.
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}")
        if state.is_world_process_zero:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            left = {"loss": loss, "logged": self._trainer._globalstep_last_logged}
            (directory / f".{WHOLE_FILE}").write_text(json.dumps(left), encoding="utf-8")
            (directory / f".{WHOLE_FILE}").rename(directory / WHOLE_FILE)
