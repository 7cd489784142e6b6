"""The parts that all workers share: the Trainer's arguments, the clock over its steps, the peak of its memory.

This runs in each peer's environment. Therefore it imports transformers, and nothing of ours but the job's records.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import transformers
from transformers import Trainer, TrainerCallback

from bench.training.job import Job, Outcome


class Clock(TrainerCallback):
    """The times at which training began and each step ended, and the losses.

    From the end of the warm-up on, everything counts that the Trainer's loop does: reading, tokenising where the
    trainer does it there, collating, both passes, clipping, the optimiser, logging.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    on_train_begin = on_step_end

    def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def step_seconds(self, warm_up: int) -> list[float]:
        counted = self.ends[warm_up:]
        return [end - start for start, end in pairwise(counted)]


def settings(job: Job) -> dict[str, Any]:
    """Settings of any TrainingArguments. All systems have the same optimiser (AdamW), constant rate and order."""
    per_forward, per_step = job.shape.per_forward, job.shape.per_step
    if per_step % per_forward:
        raise ValueError(f"{per_forward} a forward pass do not divide a step of {per_step}")
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-training-"),  # nothing is saved, but some want it to exist
        "max_steps": job.warm_up + job.steps,
        "per_device_train_batch_size": per_forward,
        "gradient_accumulation_steps": per_step // per_forward,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "bf16": job.precision == "bf16",
        "use_cpu": True,
        "activation_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def timed(trainer: Trainer, job: Job, pairs: float, comparisons: int, packages: Sequence[str] = ()) -> Outcome:
    """Train, and time the steps after the warm-up. ``pairs`` and ``comparisons`` are those of these steps."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    names = ("torch", "transformers", "accelerate", "tokenizers", "numpy", *packages)
    versions = {name: version(name) for name in names}
    return Outcome(clock.step_seconds(job.warm_up), pairs, comparisons, clock.losses, peak_memory(), versions)


def peak_memory() -> int:
    """Bytes of resident memory at most. The maximum of getrusage would begin with the parent's memory at the fork."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM line")


def counted_groups(job: Job) -> Any:
    """The groups of the steps that count."""
    return job.groups[job.warm_up * job.shape.per_step : (job.warm_up + job.steps) * job.shape.per_step]


def counted_pairs(job: Job) -> int:
    return sum(len(group.documents) for group in counted_groups(job))


def main(measure: Callable[[Job], Outcome], arguments: Sequence[str] | None = None) -> None:
    """A worker's command: ``JOB OUTCOME``, both pickled."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    job, outcome = (Path(path) for path in (sys.argv[1:] if arguments is None else arguments))
    outcome.write_bytes(pickle.dumps(measure(pickle.loads(job.read_bytes()))))
