"""How many streams, threads and rows a call an engine runs fastest with on this machine, by measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from engines.records import Timing, in_chunks
from model_repository.student.packed_engine import Layout, PackedEngine, cores
from model_repository.tokenizer.pair_encoding import PackedBatch

CANDIDATES = (1, 2, 4, 8, 16, 32)  # rows a call
LEAST_ROWS = 8  # that a time is taken of
REPETITIONS = 3
ALIKE = 0.9  # of the best speed: differences below are noise, or not worth longer calls


def layouts(available: int) -> list[Layout]:
    """One stream of all cores, and the ways to share them evenly between two or more."""
    return [Layout(streams, available // streams) for streams in range(1, available + 1) if available % streams == 0]


def measure(path: Path, precision: str, batch: PackedBatch, candidates: Sequence[int] = CANDIDATES) -> list[Timing]:
    """Each layout with each of the candidates. ``batch`` has real rows; they are repeated where they are few.

    Repetitions are interleaved, so that what else the machine does meanwhile falls on all alike.
    """
    layouts_here = layouts(cores())
    engines = [PackedEngine(path, precision, max(candidates), layout) for layout in layouts_here]
    for engine in engines:
        _seconds(engine, _full(batch, max(candidates)), max(candidates))  # the first run allocates memory
    seconds: dict[tuple[Layout, int], list[float]] = {}
    for _ in tqdm(range(REPETITIONS), desc="measuring rows per call", leave=False, disable=None):
        for size in candidates:
            rows = _full(batch, _rows(size))
            for layout, engine in zip(layouts_here, engines, strict=True):
                seconds.setdefault((layout, size), []).append(_seconds(engine, rows, size))
    return [
        Timing(*layout, size, round(_rows(size) * layout.streams / median(times), 2))
        for (layout, size), times in seconds.items()
    ]


def choose(timings: Sequence[Timing]) -> Timing:
    """Of those as fast as the fastest: the fewest streams, since one request then has all cores, and of these the
    fewest rows, since a small request then waits less for a large one."""
    best = max(timing.rows_per_second for timing in timings)
    alike = [timing for timing in timings if timing.rows_per_second >= ALIKE * best]
    return min(alike, key=lambda timing: (timing.streams, timing.rows_per_call))


def _rows(size: int) -> int:
    return max(size, LEAST_ROWS)


def _seconds(engine: PackedEngine, rows: PackedBatch, size: int) -> float:
    """All rows in each stream at the same time."""

    def work(_: int) -> None:
        in_chunks(lambda part: engine.score(part[:-1]), size)(rows)

    with ThreadPoolExecutor(engine.workers) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(engine.workers)))
        return time.perf_counter() - start


def _full(batch: PackedBatch, count: int) -> PackedBatch:
    places = np.arange(count) % len(batch.input_ids)
    return batch._replace(**{name: getattr(batch, name)[places] for name in batch._fields[:-1]})
