"""The systems that run, at their fastest settings, and their measurements, cell by cell and in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import BenchError
from bench.report import in_order
from bench.serving.cells import Cell, Option
from bench.serving.processes import Measured, Running
from bench.serving.systems import System

TRIAL = Cell(documents=200, concurrency=1, seconds=0.0, least=1)
SLOW_TRIAL = Cell(documents=8, concurrency=1, seconds=0.0, least=1)
CALLERS = Cell(documents=10, concurrency=8, seconds=1.0)
LONGEST_S = 60.0  # of a cell's least work: what would take longer is not measured
WARM_UP_S = 0.5

Progress = Callable[[str], object]


@dataclass
class Contender:
    """A system that runs, with its fastest settings. ``trials`` has the documents a second of each setting."""

    system: System
    process: Running
    versions: dict[str, str]
    trials: dict[str, float] = field(default_factory=dict)
    option: Option = field(default_factory=dict)
    results: dict[Cell, list[Measured]] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.system.name

    @property
    def speed(self) -> float:
        return max(self.trials.values())


def start(system: System, work: Path, stack: ExitStack) -> Contender:
    """Start the system at its fastest settings. Raises BenchError if it does not run."""
    best: Contender | None = None
    for setup in system.setups:
        other = _begin(system, setup, work)
        stack.callback(other.process.close)
        if best is None:
            best = other
            continue
        slower, best = sorted((best, other), key=lambda contender: contender.speed)
        slower.process.close()
        best.trials = {**slower.trials, **best.trials}
    assert best is not None, "a system has a setup"
    return best


def _begin(system: System, setup: dict[str, Any], work: Path) -> Contender:
    process = Running(system.name, system.python, system.module, setup, work)
    try:
        contender = Contender(system, process, process.wait())
        _try_options(contender, setup)
    except BaseException:
        process.close()
        raise
    return contender


def _try_options(contender: Contender, setup: dict[str, Any]) -> None:
    """Try each option, then whether callers are served faster together or in turn at the fastest of them."""
    process, options = contender.process, contender.system.options
    named = f"batch size {setup['batch_size']}" if "batch_size" in setup else "as it is"
    first = _speed(process, options[0] if options else None, SLOW_TRIAL)
    if TRIAL.documents / first > LONGEST_S:
        contender.trials, contender.option = {named: first}, dict(options[0]) if options else {}
        return
    if not options:
        contender.trials = {named: _speed(process, None, TRIAL)}
        return
    speeds = {option["batch_size"]: _speed(process, option, TRIAL) for option in options}
    contender.trials = {f"batch size {size}": speed for size, speed in speeds.items()}
    contender.option = {"batch_size": max(speeds, key=speeds.__getitem__), "together": False}
    together = {**contender.option, "together": True}
    in_turn = _speed(process, contender.option, CALLERS)
    try:
        at_once = _speed(process, together, CALLERS)
    except BenchError:
        at_once = 0.0  # some take one caller at a time only
    contender.option = together if at_once > in_turn else contender.option
    process.use(contender.option)


def _speed(process: Running, option: Option | None, cell: Cell) -> float:
    if option is not None:
        process.use(option)
    return process.load(cell).sample.documents_per_second


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
