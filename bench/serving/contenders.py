"""The systems that run, at their fastest settings, and their measurements, cell by cell and in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from bench.environments import BenchError
from bench.report import in_order
from bench.serving.load import Cell, Option
from bench.serving.processes import Measured, Running
from bench.serving.quality import Quality
from bench.serving.systems import OURS, System

TRIAL = Cell(documents=200, concurrency=1, seconds=0.0)
SLOW_TRIAL = Cell(documents=8, concurrency=1, seconds=0.0)
CALLERS = Cell(documents=10, concurrency=8, seconds=1.0)
LONGEST_S = 60.0  # of a cell's least work: what would take longer is not measured
WARM_UP_S = 0.5

Progress = Callable[[str], object]


@dataclass
class Contender:
    """A system that runs, with its fastest settings. ``trials`` has the documents a second of each setting."""

    system: System
    process: Running
    trials: dict[str, float] = field(default_factory=dict)
    option: Option = field(default_factory=dict)
    quality: Quality | None = None  # None where that would take too long
    results: dict[Cell, list[Measured]] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.system.name

    @property
    def is_ours(self) -> bool:
        return self.system.kind == OURS

    @property
    def speed(self) -> float:
        return max(self.trials.values())

    def speeds(self, cell: Cell) -> list[float]:
        """Documents a second in each round, [] if there is none."""
        return [each.sample.documents_per_second for each in self.results.get(cell, ())]


def start(system: System, work: Path, stack: ExitStack) -> Contender:
    """Start the system at its fastest settings. Raises BenchError if it does not run."""
    process = Running(system.name, system.python, system.module, system.setup, work)
    stack.callback(process.close)
    return Contender(system, process, *_tried(process, system.options or ({},)))


def _tried(process: Running, options: Sequence[Option]) -> tuple[dict[str, float], Option]:
    """The speed at each option, and the fastest, where callers are served together if that is faster than in turn."""

    def speed(option: Option, cell: Cell) -> float:
        if option:
            process.ask("use", option)
        return process.load(cell).sample.documents_per_second

    names = [f"batch size {option['batch_size']}" if option else "as it is" for option in options]
    first = speed(options[0], SLOW_TRIAL)
    if TRIAL.documents / first > LONGEST_S:
        return {names[0]: first}, options[0]
    speeds = [speed(option, TRIAL) for option in options]
    best = options[int(np.argmax(speeds))]
    if "together" in best:
        together = {**best, "together": True}
        try:
            at_once = speed(together, CALLERS)
        except BenchError:
            at_once = 0.0  # some take one caller at a time only
        best = together if at_once > speed(best, CALLERS) else best
    if best:
        process.ask("use", best)
    return dict(zip(names, speeds, strict=True)), best


def measure(contender: Contender, cell: Cell, seed: int) -> None:
    """Add a result of the cell after a warm-up of the same kind, or the reason why there is none."""
    if cell in contender.failures:
        return
    least_work = cell.documents * max(cell.concurrency, cell.least)
    if least_work / contender.speed > LONGEST_S:
        contender.failures[cell] = f"{contender.speed:.1f} documents/s in the trial: too slow for this"
        return
    warm_up = Cell(min(cell.documents, 100), min(cell.concurrency, 4), WARM_UP_S, cell.repeated)
    try:
        contender.process.load(warm_up, seed + 1, hot=cell.repeated > 0)
        contender.results.setdefault(cell, []).append(contender.process.load(cell, seed))
    except BenchError as error:
        contender.failures[cell] = str(error)
        contender.results.pop(cell, None)  # ratios are of the same rounds


def rounds(contenders: Sequence[Contender], cells: Sequence[Cell], count: int, progress: Progress) -> None:
    """Fill the contenders' results."""
    for number in range(count):
        for cell in cells:
            for contender in in_order(contenders, number):
                measure(contender, cell, seed=number)
                progress(f"{contender.name}: {cell}")


def best_peers(contenders: Sequence[Contender], cell: Cell) -> list[Contender]:
    """The fastest peer of each kind in a cell, among those that rank as well as the checkpoint."""
    able = [one for one in contenders if not one.is_ours and one.speeds(cell) and one.quality and one.quality.passes]
    able.sort(key=lambda one: median(one.speeds(cell)))
    return list({one.system.kind: one for one in able}.values())
