"""The callback by which a run may be interrupted at any moment; see trainer/training/resume.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from client.errors import DisRankerError
from client.files import flush
from trainer.storage import appears_whole, publish
from trainer.training.processes import highest
from trainer.training.resume import ENDED_FILE, WHOLE_FILE, metrics_of, numbered, remove

STOPPING = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(DisRankerError):
    """A signal stopped the run. Its newest checkpoint is whole, and the same command resumes from there."""

    label = ""

    def __init__(self, received: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(received).name} at step {step}; the same command resumes there")
        self.exit_code = 128 + received


class Resumable(TrainerCallback):
    """Marks checkpoints as whole, restores the state that the Trainer forgets, and answers a signal by a checkpoint.

    Of the checkpoints, the newest ``keep`` and the best one stay.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path | None, keep: int | None) -> None:
        self._trainer, self._checkpoint, self._keep = trainer, checkpoint, keep
        self._received = self._stopped_by = 0  # the number of a signal, here and as all processes agreed

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A signal that arrives in the block ends it with a checkpoint, and then with InterruptedRunError."""
        before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}

        def receive(number: int, frame: FrameType | None) -> None:
            self._received = number
            signal.signal(number, before[number])  # a second one takes effect at once

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
        # The loss since the last point of the curve.
        if self._checkpoint is not None and metrics_of(self._checkpoint) is None:
            whole = json.loads((self._checkpoint / WHOLE_FILE).read_text(encoding="utf-8"))
            self._trainer._tr_loss = torch.tensor(whole["loss"], device=args.device)
            self._trainer._globalstep_last_logged = whole["logged"]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset: Any = self._trainer.train_dataset
        if hasattr(dataset, "resume_at"):
            dataset.resume_at(state.epoch or 0.0)
        else:  # Accelerate forgets it where batches are skipped
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            return
        if stopped_by := highest(self._received, args.device):  # a signal reaches the processes in different steps
            self._stopped_by = stopped_by
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        # The mean over the processes is a barrier too: every process has written its part of the checkpoint.
        loss = reduce(self._trainer._tr_loss, "mean").item()
        if args.load_best_model_at_end and state.best_global_step:
            # With shards, the Trainer may look for the directory before it exists, and find it in some processes only.
            state.best_model_checkpoint = str(directory.with_name(f"checkpoint-{state.best_global_step}"))
        if state.is_world_process_zero:
            flush(directory)
            publish(directory)
            since = {"loss": loss, "logged": self._trainer._globalstep_last_logged}
            with appears_whole(directory / WHOLE_FILE) as partial:
                partial.write_text(json.dumps(since), encoding="utf-8")
            if state.global_step < state.max_steps and not control.should_training_stop:  # a run can resume from there
                self._rotate(directory.parent, state.best_global_step)

    def _rotate(self, directory: Path, best: int | None) -> None:
        """Not before the newest checkpoint is whole, as the Trainer does: with one to keep, there would be none."""
        older = sorted(numbered(directory).items())[: -self._keep or None] if self._keep else []
        for step, checkpoint in older:
            if step != best:
                remove(checkpoint)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark_ended(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark_ended(args, state, control)

    def _mark_ended(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """The same command would go on to the result from here; at the end of training, with the Trainer's metrics."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if metrics_of(checkpoint) or not is_last or self._stopped_by or not state.is_world_process_zero:
            return
        if (checkpoint / WHOLE_FILE).is_file():
            last = state.log_history[-1] if state.log_history else {}
            with appears_whole(checkpoint / ENDED_FILE) as partial:
                partial.write_text(json.dumps(last if "train_loss" in last else {}), encoding="utf-8")
