"""The limits of a served engine: the engine without a server, its matrices, the tail of latency, the growth of cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from bench.report import Spread, ratios
from bench.serving.contenders import Contender
from bench.serving.load import Cell, Way
from bench.serving.processes import Running
from bench.serving.systems import System
from bench.serving.traffic import Traffic
from model_repository.tokenizer.pair_encoding import Document, PairEncoder

TAIL_CELL = Cell(documents=10, concurrency=8, seconds=0.0)
TAIL_LOAD = 0.7
SMALL = 10  # documents of a request whose way is looked at
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Limits:
    """The limits of one of our builds, in documents a second."""

    served: Spread
    engine: Spread  # on the same pairs, packed beforehand
    share: Spread  # served over engine, round by round
    full_rows: Spread  # the engine on rows without an empty slot, at the same mean length
    matrices: float  # the matrix products of the layers and nothing else
    matrix_share: float  # the engine over the matrices
    matrix_flop_per_second: float
    matrices_run_in: str
    mean_tokens: float
    fill: float  # of the rows


@dataclass(frozen=True)
class Tail:
    """Milliseconds from when a request was due, at the share ``load`` of the closed loop's requests a second."""

    requests_per_second: float
    load: float
    p50: float
    p99: float

    @property
    def ratio(self) -> float:
        return self.p99 / self.p50


@dataclass(frozen=True)
class Growth:
    """Median seconds of a request by its tokens, one at a time, and ``r_squared`` of the straight line through them."""

    documents: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    r_squared: float


class Bounds(NamedTuple):
    """All that is measured of our own systems only."""

    limits: Limits
    tail: Tail
    growth: Growth
    ways: Mapping[Cell, Way]


def limits(ours: Contender, engine: System, work: Path, documents: int, rounds: int, seconds: float) -> Limits:
    """Measure requests of ``documents``, by turns through the server and in the engine without one."""
    served, found = [], []
    with closing(Running(engine.name, engine.python, engine.module, engine.setup, work)) as alone:
        for number in range(rounds):
            cell = Cell(documents, 1, seconds)
            served.append(ours.process.load(cell, number).sample.documents_per_second)
            found.append(alone.ask("alone", documents, seconds, number))
        matrix = alone.ask("matrix_limit", seconds)
    of = {name: [each[name] for each in found] for name in found[0]}
    tokens = mean(of["mean_tokens"])
    most = matrix["flop_per_second"] / (matrix["flop_per_token"] * tokens)
    return Limits(
        served=Spread.of(served),
        engine=Spread.of(of["documents_per_second"]),
        share=ratios(served, of["documents_per_second"]),
        full_rows=Spread.of([rate / tokens for rate in of["full_tokens_per_second"]]),
        matrices=most,
        matrix_share=Spread.of(of["documents_per_second"]).median / most,
        matrix_flop_per_second=matrix["flop_per_second"],
        matrices_run_in=matrix["runs_in"],
        mean_tokens=tokens,
        fill=mean(of["fill"]),
    )


def ways(ours: Contender, cells: Sequence[Cell]) -> dict[Cell, Way]:
    """Measure where the time of small requests goes."""
    return {cell: ours.process.ask("way", cell, 0) for cell in cells if cell.documents <= SMALL}


def tail(ours: Contender, seconds: float) -> Tail:
    """Measure the highest rate, then requests that arrive at random at TAIL_LOAD of it."""
    most = ours.process.load(Cell(TAIL_CELL.documents, TAIL_CELL.concurrency, seconds)).sample
    rate = TAIL_LOAD * most.documents_per_second / TAIL_CELL.documents
    cell = Cell(TAIL_CELL.documents, TAIL_CELL.concurrency, 3 * seconds, rate=rate)
    times = ours.process.load(cell, seed=1).sample.milliseconds
    p50, p99 = np.percentile(times, [50, 99])
    return Tail(rate, TAIL_LOAD, float(p50), float(p99))


def growth(
    ours: Contender, traffic: Traffic, encoder: PairEncoder, seconds: float, sizes: Sequence[int] = SIZES
) -> Growth:
    tokens, times = [], []
    for size in sizes:
        found = ours.process.load(Cell(size, 1, seconds, least=2)).sample.milliseconds
        asked = traffic.requests(size, 0.0)
        tokens.append(mean(_tokens(encoder, *next(asked)) for _ in found))
        times.append(float(np.median(found)) / 1000)
    return Growth(tuple(sizes), tuple(tokens), tuple(times), float(np.corrcoef(tokens, times)[0, 1] ** 2))


def _tokens(encoder: PairEncoder, query: str, documents: Sequence[str]) -> int:
    return len(encoder.encode(query, [Document(title="", summary=text) for text in documents]).token_ids)
