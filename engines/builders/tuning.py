"""Measures with how many rows a call an engine is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from tqdm import tqdm

from engines.records import Timing
from model_repository.student.processor_engine import OpenedGraph, ProcessorEngine
from model_repository.tokenizer.pair_encoding import PackedBatch

CANDIDATES = (4, 8, 16, 32)  # rows a call; fewer are as fast alone, but lose a tenth where they are served
LEAST_ROWS = 8  # that a time is taken of
REPETITIONS = 3
ALIKE = 0.9  # of the best speed: differences below are noise, or not worth longer calls


def measure(opened: OpenedGraph, batch: PackedBatch, candidates: Sequence[int] = CANDIDATES) -> list[Timing]:
    """Each of the candidates, on all cores, as the server runs it. ``batch`` has real rows; they are repeated where
    they are few.

    Repetitions are interleaved, so that what else the machine does meanwhile falls on all alike.
    """
    length = batch.input_ids.shape[1]
    engines = {size: ProcessorEngine(opened, size, length) for size in candidates}
    largest = max(candidates)
    _seconds(engines[largest], _full(batch, largest))  # the first run allocates memory
    seconds: dict[int, list[float]] = {}
    for _ in tqdm(range(REPETITIONS), desc="measuring rows per call", leave=False, disable=None):
        for size in candidates:
            seconds.setdefault(size, []).append(_seconds(engines[size], _full(batch, _rows(size))))
    return [Timing(size, round(_rows(size) / median(times), 2)) for size, times in seconds.items()]


def choose(timings: Sequence[Timing]) -> Timing:
    """The fewest rows among those as fast as the fastest, so that a small request waits less for a large one."""
    best = max(timing.rows_per_second for timing in timings)
    return min(
        (timing for timing in timings if timing.rows_per_second >= ALIKE * best),
        key=lambda timing: timing.rows_per_call,
    )


def _rows(size: int) -> int:
    return max(size, LEAST_ROWS)


def _seconds(engine: ProcessorEngine, rows: PackedBatch) -> float:
    start = time.perf_counter()
    engine.score_packed(rows[:-1])
    return time.perf_counter() - start


def _full(batch: PackedBatch, count: int) -> PackedBatch:
    places = np.arange(count) % len(batch.input_ids)
    return batch._replace(**{name: getattr(batch, name)[places] for name in batch._fields[:-1]})
