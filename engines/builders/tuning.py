"""Measures with how many rows a call an engine is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from tqdm import tqdm

from engines.library import runner
from engines.records import Timing
from model_repository.student.runtime.graphs import Graph
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import FlatPairs

CANDIDATES = (4, 8, 16, 32)  # rows a call; fewer are as fast alone, but lose a tenth where they are served
LEAST_ROWS = 8  # that a time is taken of
REPETITIONS = 3
ALIKE = 0.9  # of the best speed: differences below are noise, or not worth longer calls


def measure(opened: Graph, layout: Layout, pairs: FlatPairs, candidates: Sequence[int] = CANDIDATES) -> list[Timing]:
    """Each of the candidates, on all cores, as the server runs it. ``pairs`` are real ones; they are repeated where
    they are few.

    Repetitions are interleaved, so that what else the machine does meanwhile falls on all alike.
    """
    scorers = {size: PairScorer(opened, layout, size) for size in candidates}
    for scorer in scorers.values():
        scorer.warm_up()
    filled = {size: _repeated(pairs, max(size, LEAST_ROWS) * layout.row_length) for size in candidates}
    seconds: dict[int, list[float]] = {}
    for _ in tqdm(range(REPETITIONS), desc="measuring rows per call", leave=False, disable=None):
        for size in candidates:
            seconds.setdefault(size, []).append(_seconds(scorers[size], filled[size]))
    return [
        Timing(size, round(len(filled[size].token_ids) / layout.row_length / median(times), 2))
        for size, times in seconds.items()
    ]


def choose(timings: Sequence[Timing]) -> Timing:
    """The fewest rows among those as fast as the fastest, so that a small request waits less for a large one."""
    best = max(timing.rows_per_second for timing in timings)
    return min(
        (timing for timing in timings if timing.rows_per_second >= ALIKE * best),
        key=lambda timing: timing.rows_per_call,
    )


def _seconds(scorer: PairScorer, pairs: FlatPairs) -> float:
    run = runner(scorer)
    start = time.perf_counter()
    run(pairs)
    return time.perf_counter() - start


def _repeated(pairs: FlatPairs, tokens: int) -> FlatPairs:
    """The pairs again and again, as many as make at most ``tokens`` tokens."""
    whole = FlatPairs.join([pairs] * (1 + tokens // len(pairs.token_ids)))
    return whole[: max(1, int(np.searchsorted(np.cumsum(whole.lengths), tokens, "right")))]
