"""The load: callers who wait for their answers, or requests that arrive whether or not. Standard library only.

The arrivals are those of the load test. The callers are threads and not its greenlets, since this also runs in the
environments of the peers, which have no gevent, and since some peers are libraries that compute in the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from loadtest._schedule import arrivals

Option = dict[str, Any]  # settings of a system that the bench tries: batch_size, together
Pair = tuple[str, tuple[str, ...]]  # a query with its documents, each one text
Score = Callable[[str, tuple[str, ...]], list[float]]
Connect = Callable[[], Score]  # called once for each caller


class LoadError(Exception):
    """A system failed under load, or answered something else than it was asked."""


@dataclass(frozen=True)
class Cell:
    """Requests of one shape, in a closed loop or, with ``rate``, in an open one."""

    documents: int
    concurrency: int  # callers of a closed loop, each of whom waits for the answer; connections of an open one
    seconds: float
    repeated: float = 0.0  # share of documents that were sent before; all others have never been seen
    rate: float = 0.0  # requests a second of an open loop, which arrive at random
    least: int = 1  # requests of a closed loop at least

    @property
    def shape(self) -> tuple[int, int]:
        return self.documents, self.concurrency

    def __str__(self) -> str:
        shape = f"{self.documents:,} documents, concurrency {self.concurrency}"
        return shape + (f", {self.repeated:.0%} repeated" if self.repeated else "")


@dataclass(frozen=True)
class Sample:
    """The figures of one cell, with the milliseconds of each request.

    Documents a second are those from the first request to the last answer, since a system is busy until then.
    Unfinished requests cannot be counted in part from outside, since most of their time may be waiting.
    """

    documents_per_second: float
    documents: int
    milliseconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """Where the time of a cell's requests went, on their way through a server of ours.

    parts: mean milliseconds of a request, by step and part
    engine_share: of the cell's time, in which the engine worked
    """

    sample: Sample
    parts: dict[str, float]
    engine_share: float
    calls_per_second: float
    tokens_per_call: float


def measure(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    """Raises LoadError with the failure of a connection or a request."""
    try:
        connections = [connect() for _ in range(cell.concurrency)]
        with ThreadPoolExecutor(cell.concurrency) as callers:
            begin = time.perf_counter()
            call = _caller(_asked(requests, cell, begin))
            answered = [each for one in callers.map(call, connections) for each in one]
    except Exception as error:
        raise LoadError(f"{type(error).__name__}: {error}") from error
    if not answered:
        raise LoadError("no request was answered: give it more --seconds")
    dues, ends, counts = zip(*answered, strict=True)
    return Sample(
        sum(counts) / (max(ends) - begin),
        sum(counts),
        [1000 * (end - due) for due, end in zip(dues, ends, strict=True)],
    )


def _caller(asked: Iterator[tuple[Pair, float]]) -> Callable[[Score], list[tuple[float, float, int]]]:
    """A function for the thread of a caller, which sends requests until there are no more or any of them failed.

    It returns when each was due, when it was answered, and the number of its documents.
    """
    lock, failed = threading.Lock(), threading.Event()

    def call(score: Score) -> list[tuple[float, float, int]]:
        answered = []
        try:
            while not failed.is_set():
                with lock:
                    request, due = next(asked)
                scores = score(*request)
                answered.append((due, time.perf_counter(), len(scores)))
                if len(scores) != len(request[1]):
                    raise LoadError(f"{len(scores)} scores for {len(request[1])} documents")
        except StopIteration:
            pass
        except Exception:
            failed.set()
            raise
        return answered

    return call


def _asked(requests: Iterator[Pair], cell: Cell, begin: float) -> Iterator[tuple[Pair, float]]:
    """Each request with the time from which its latency counts, given out no earlier than that.

    In a closed loop this is when a caller is free. In an open loop arrivals are Poisson's, and a request waits while
    all connections are busy.
    """
    if cell.rate:
        for due in arrivals("poisson", cell.rate, cell.seconds, seed=0):
            time.sleep(max(0.0, begin + due - time.perf_counter()))
            yield next(requests), begin + due
        return
    taken = 0
    while taken < cell.least or time.perf_counter() - begin < cell.seconds:
        taken += 1
        request = next(requests)
        yield request, time.perf_counter()
