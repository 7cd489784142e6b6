"""``--engine auto``: all that this processor has units for is built, judged and measured; the fastest that passes wins.

The speed of an engine is the geometric mean of its documents per second over requests of three sizes, so that each size
counts alike. Of the engines within a twentieth of the fastest the most exact is taken: less is noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import geometric_mean, median
from typing import NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from client.errors import DisRankerError
from engines.builders import Builder, Judged, builder_for
from engines.job import Job
from engines.parity import LIMITS
from engines.records import EngineError, Runner, Trial
from engines.table import Engine
from model_repository.student.runtime.graphs import cores
from model_repository.tokenizer.pair_encoding import FlatPairs
from trainer.command import console_of
from trainer.measures.metrics import MEASURE

INSTALLED, PASSES = "installed", "passes"  # results of a trial
SIZES = (1, 10, 1000)  # documents of a request
ROUNDS, REPEATS = 3, 8  # the largest request is measured once a round, smaller ones so often
TRIED_ON = 32  # documents that a first estimate is taken of
LONGEST_S = 4.0  # of the largest request: it has fewer documents where the slowest engine would take longer
ALIKE = 0.95  # of the best speed
EXACT = [*LIMITS]  # precisions, the most exact first
WIDTH = 140


class Tried(NamedTuple):
    """An engine that was built, None where it does not pass, and what is known of it."""

    judged: Judged | None
    trial: Trial


def build_fastest(job: Job) -> tuple[Judged, tuple[Trial, ...]]:
    """The engine to install, and all that were tried. Raises EngineError, below a table of why, where none passes."""
    tried = _build_all(job)
    passing = [judged for judged, _ in tried if judged]
    if not passing:
        show([trial for _, trial in tried])
        raise EngineError(f"{job.arguments.checkpoint}: of {len(tried)} engines none can be installed; see the table")
    speeds = measure([judged.built.run for judged in passing], _pairs(job))
    best = passing[choose([*map(_mean, speeds)])]
    measured = iter(speeds)
    trials = tuple(_measured(trial, next(measured), judged is best) if judged else trial for judged, trial in tried)
    show(trials)
    return best, trials


def _build_all(job: Job) -> list[Tried]:
    """All engines that are tried, the most exact first; PyTorch, which is slower, where no library can be used."""
    *libraries, instead = job.arguments.engines
    tried = _build_each(job, libraries)
    if any(each.trial.mean_kendall_tau is not None for each in tried):
        return tried
    return [*tried, *_build_each(job, [instead])]


def _build_each(job: Job, engines: Sequence[Engine]) -> list[Tried]:
    wanted = [(engine, precision) for engine in engines for precision in _precisions(job, engine)]
    wanted.sort(key=lambda each: EXACT.index(each[1]))
    bar = tqdm(wanted, desc="building engines", unit="engine", disable=None)
    return [_build(job, engine, precision) for engine, precision in bar]


def _precisions(job: Job, engine: Engine) -> Sequence[str]:
    if asked := job.arguments.precision:
        return [asked] if asked in engine.precisions else []
    try:
        builder: Builder = engine.builder_class()()
        return builder.fitting()
    except Exception:  # such as a library that is not installed: building it says so
        return engine.precisions[:1]


def _build(job: Job, engine: Engine, precision: str) -> Tried:
    if precision in engine.calibrated and not job.calibration:
        return Tried(None, Trial(engine.name, precision, "not tried: it needs judged --data and --calibration"))
    alone = job.alone(engine, precision)
    try:
        judged = builder_for(alone.arguments).judged(alone)
    except Exception as error:  # of many kinds: a missing library, an operator that it lacks, memory
        return Tried(None, Trial(engine.name, precision, f"not built: {_reason(error)}"))
    report, problems = judged.report, judged.report.problems(judged.built.runs_in)
    result = f"refused: {problems}" if problems else PASSES
    trial = Trial(engine.name, precision, result, report.mean_kendall_tau, report.ndcg_difference)
    return Tried(None if problems else judged, trial)


def _reason(error: Exception) -> str:
    """The message, and of a library's own error the kind and the first line."""
    if isinstance(error, DisRankerError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _measured(trial: Trial, speed: dict[int, float], chosen: bool) -> Trial:
    result = INSTALLED if chosen else PASSES
    return replace(trial, result=result, documents_per_second=speed, speed=_mean(speed))


def _mean(speed: dict[int, float]) -> float:
    return _rounded(geometric_mean(speed.values()))


def _rounded(speed: float) -> float:
    return float(f"{speed:.4g}")


def choose(speeds: Sequence[float]) -> int:
    """The place of the first speed within ALIKE of the best."""
    return next(place for place, speed in enumerate(speeds) if speed >= ALIKE * max(speeds))


def measure(runs: Sequence[Runner], pairs: FlatPairs) -> list[dict[int, float]]:
    """The documents per second of each engine, by the documents of a request. Requests are made of ``pairs`` in turn.

    Engines take turns at each size, so that what else the machine does falls on all alike; the medians of the rounds
    are taken.
    """
    sizes = _sizes(runs, pairs)
    seconds: list[dict[int, list[float]]] = [{size: [] for size in sizes} for _ in runs]
    for number in tqdm(range(ROUNDS), desc="measuring engines", unit="round", disable=None):
        for size in sizes:
            repeats = 1 if size == sizes[-1] else REPEATS
            for run, of_engine in zip(runs, seconds, strict=True):
                requests = [_request(pairs, size, number * repeats + turn) for turn in range(repeats)]
                of_engine[size].append(_seconds(time.perf_counter, run, requests) / repeats)
    return [{size: _rounded(size / median(times)) for size, times in each.items()} for each in seconds]


def _sizes(runs: Sequence[Runner], pairs: FlatPairs) -> list[int]:
    request = _request(pairs, TRIED_ON, 0)
    for run in runs:
        run(request)  # the first time of a shape is slower
    # By the processor's time, so that other work on the machine does not make requests smaller.
    slowest = max(_seconds(time.process_time, run, [request]) for run in runs) / TRIED_ON / cores()
    *small, largest = SIZES
    return [*small, max(small[-1] + 1, min(largest, int(LONGEST_S / slowest)))]


def _seconds(clock: Callable[[], float], run: Runner, requests: Sequence[FlatPairs]) -> float:
    start = clock()
    for request in requests:
        run(request)
    return clock() - start


def _request(pairs: FlatPairs, size: int, number: int) -> FlatPairs:
    return pairs[(number * size + np.arange(size)) % len(pairs)]


def _pairs(job: Job) -> FlatPairs:
    return FlatPairs.join([request.pairs for request in job.yardstick.requests])


def show(trials: Sequence[Trial]) -> None:
    """Print a table of what was tried."""
    sizes = next((trial.documents_per_second for trial in trials if trial.documents_per_second), {})
    table = Table(title="engines on this processor: documents per second, by the documents of a request")
    for name in ("engine", "precision", *(f"{size:,}" for size in sizes), *["mean"] * bool(sizes)):
        table.add_column(name, justify="left" if name in ("engine", "precision") else "right")
    for name in ("Kendall's tau", MEASURE, "result"):
        table.add_column(name, justify="left" if name == "result" else "right")
    for trial in trials:
        speeds = [*(trial.documents_per_second.get(size) for size in sizes), *[trial.speed] * bool(sizes)]
        quality = (f"{value:{form}}" if value is not None else "" for value, form in _quality(trial))
        numbers = (f"{speed:,.1f}" if speed else "" for speed in speeds)
        table.add_row(trial.engine, trial.precision, *numbers, *quality, escape(trial.result))
    console_of(WIDTH).print(table)


def _quality(trial: Trial) -> tuple[tuple[float | None, str], ...]:
    return (trial.mean_kendall_tau, ".4f"), (trial.ndcg_difference, "+.4f")
