"""Systems side by side. Every measurement is a fresh process; rounds let a slowdown of the machine hit all alike."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.environments import BenchError, last_line, worker_variables
from bench.report import in_order
from bench.training.job import Job, Outcome, Shape

Progress = Callable[[], object]  # called after each measurement


@dataclass(frozen=True)
class System:
    """A system that is compared: its Python, its worker, and the shapes that it may choose from."""

    name: str
    python: Path
    worker: tuple[str, ...]
    shapes: tuple[Shape, ...]


@dataclass
class Measured:
    """A system in all rounds, at its fastest shape. ``trials`` has the pairs a second of each shape."""

    system: System
    shape: Shape
    trials: dict[str, float]
    rounds: list[Outcome]

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


def compare(
    systems: Sequence[System], job: Job, rounds: int, trial_steps: int, threads: int, progress: Progress
) -> list[Measured]:
    """Each system at its fastest shape, in ``rounds`` rounds of one measurement each. The first system is ours."""

    def measured(system: System, job: Job) -> Outcome:
        outcome = run(system, job, threads)
        progress()
        return outcome

    found = []
    for system in systems:
        speeds = {}
        if len(system.shapes) > 1:  # else there is nothing to choose
            trial = replace(job, steps=trial_steps)
            speeds = {each: measured(system, replace(trial, shape=each)).pairs_per_second for each in system.shapes}
        best = max(speeds, key=speeds.__getitem__, default=system.shapes[0])
        found.append(Measured(system, best, {str(shape): speed for shape, speed in speeds.items()}, []))
    for number in range(rounds):
        for each in in_order(found, number):
            each.rounds.append(measured(each.system, replace(job, shape=each.shape)))
    return found


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two loss curves at the same step, relative to theirs."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))
