"""Systems side by side. Every measurement is a fresh process; rounds let a slowdown of the machine hit all alike."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Measured:
    """A system in all rounds, at its fastest shape. ``trials`` has the pairs a second of each shape."""

    system: System
    shape: Shape
    trials: dict[str, float]
    rounds: tuple[Outcome, ...]

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
        asked, answer = Path(name) / "job.json", Path(name) / "outcome.json"
        job.save(asked)
        done = subprocess.run(
            [str(system.python), "-m", *system.worker, str(asked), str(answer)],
            capture_output=True, text=True, check=False, env={**worker_variables(threads), "TMPDIR": name}, cwd=name,
        )  # fmt: skip
        if done.returncode or not answer.exists():
            raise BenchError(f"{system.name} ({job.precision}, {job.shape}): {last_line(done.stderr)}")
        return Outcome.load(answer)


def compare(
    systems: Sequence[System], job: Job, rounds: int, trial_steps: int, threads: int, progress: Progress
) -> list[Measured]:
    """Each system at its fastest shape, in ``rounds`` rounds of one measurement each. The first system is ours."""
    trials = {system.name: _trials(system, replace(job, steps=trial_steps), threads, progress) for system in systems}
    best = {name: max(tried, key=lambda shape: tried[shape]) for name, tried in trials.items()}
    outcomes: dict[str, list[Outcome]] = {system.name: [] for system in systems}
    for number in range(rounds):
        for system in in_order(systems, number):
            outcomes[system.name].append(run(system, replace(job, shape=best[system.name]), threads))
            progress()
    return [
        Measured(
            system,
            best[system.name],
            {str(shape): speed for shape, speed in trials[system.name].items()},
            tuple(outcomes[system.name]),
        )
        for system in systems
    ]


def _trials(system: System, job: Job, threads: int, progress: Progress) -> Mapping[Shape, float]:
    if len(system.shapes) == 1:
        return {system.shapes[0]: 0.0}  # nothing to choose
    speeds = {}
    for shape in system.shapes:
        speeds[shape] = run(system, replace(job, shape=shape), threads).pairs_per_second
        progress()
    return speeds


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two loss curves at the same step, relative to theirs."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))
