"""Systems side by side. Every measurement is a fresh process; rounds let a slowdown of the machine hit all alike."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.environments import BenchError, last_line, worker_variables
from bench.report import in_order
from bench.training.job import Job, Outcome, Shape

TRIAL_STEPS = 2
Progress = Callable[[], object]  # called after each measurement


@dataclass(frozen=True)
class System:
    """A system that is compared: its Python, its worker, and the shapes that it may choose from."""

    name: str
    python: Path
    worker: tuple[str, ...]
    shapes: tuple[Shape, ...]
    check: Shape | None = None  # of the task's check


@dataclass(frozen=True)
class Task:
    """A job that several systems do, each in shapes of its own.

    ``check`` compares the losses of systems that read the data in an order of their own. One step holds all of it.
    """

    name: str
    job: Job
    systems: tuple[System, ...]  # ours first
    rounds: int
    check: Job | None = None

    def measurements(self) -> int:
        shapes = sum(len(system.shapes) for system in self.systems if len(system.shapes) > 1)
        return shapes + (self.rounds + (self.check is not None)) * len(self.systems)


@dataclass
class Measured:
    """A system in all rounds, at its fastest shape. ``trials`` has the pairs a second of each shape."""

    system: System
    shape: Shape
    trials: dict[str, float]
    rounds: list[Outcome] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # to compare with the other systems'

    @property
    def pairs_per_second(self) -> list[float]:
        return [outcome.pairs_per_second for outcome in self.rounds]

    @property
    def comparisons_per_second(self) -> list[float]:
        return [outcome.comparisons / outcome.seconds for outcome in self.rounds]

    @property
    def peak_bytes(self) -> int:
        return max(outcome.peak_bytes for outcome in self.rounds)


def run(system: System, job: Job, threads: int) -> Outcome:
    """Start the worker, wait for it, and read its answer. Raises BenchError with its last line if it fails."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        asked, answer = Path(name) / "job", Path(name) / "outcome"
        asked.write_bytes(pickle.dumps(job))
        done = subprocess.run(
            [str(system.python), "-m", *system.worker, str(asked), str(answer)],
            capture_output=True, text=True, check=False, env={**worker_variables(threads), "TMPDIR": name}, cwd=name,
        )  # fmt: skip
        if done.returncode or not answer.exists():
            raise BenchError(f"{system.name} ({job.precision}, {job.shape}): {last_line(done.stderr)}")
        outcome: Outcome = pickle.loads(answer.read_bytes())
        return outcome


def compare(task: Task, threads: int, progress: Progress) -> list[Measured]:
    """Each system at its fastest shape, in rounds of one measurement each."""

    def measured(system: System, job: Job) -> Outcome:
        outcome = run(system, job, threads)
        progress()
        return outcome

    found = []
    for system in task.systems:
        speeds = {}
        if len(system.shapes) > 1:  # else there is nothing to choose
            trial = replace(task.job, steps=TRIAL_STEPS)
            speeds = {each: measured(system, replace(trial, shape=each)).pairs_per_second for each in system.shapes}
        best = max(speeds, key=speeds.__getitem__, default=system.shapes[0])
        found.append(Measured(system, best, {str(shape): speed for shape, speed in speeds.items()}))
    for number in range(task.rounds):
        for each in in_order(found, number):
            each.rounds.append(measured(each.system, replace(task.job, shape=each.shape)))
    for each in found:
        each.losses = each.rounds[0].losses
        if task.check and each.system.check:
            each.losses = measured(each.system, replace(task.check, shape=each.system.check)).losses
    return found


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two loss curves at the same step, relative to theirs."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))
