"""The load: callers who wait for their answers, or requests that arrive whether or not. Standard library only.

The arrivals are those of the load test. The callers are threads and not its greenlets, since this also runs in the
environments of the peers, which have no gevent, and since some peers are libraries that compute in the caller's thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from bench.serving.cells import Cell, Pair, Sample
from loadtest._schedule import arrivals

Score = Callable[[str, tuple[str, ...]], list[float]]
Connect = Callable[[], Score]  # called once in each thread


class LoadError(Exception):
    """A system failed under load, or answered something else than it was asked."""


@dataclass(frozen=True)
class Answered:
    """One request: when it was due and when it was answered, by time.perf_counter."""

    due: float
    end: float
    documents: int


class Due(NamedTuple):
    """A request and the time at which it is due. None is the time at which a caller is free."""

    request: Pair
    at: float | None = None


def measure(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    """Raises LoadError with the first failure of any request."""
    return _open_loop(connect, requests, cell) if cell.rate else _closed_loop(connect, requests, cell)


class _Callers:
    """Threads with a connection each that begin together and send the requests of ``following`` until it gives None."""

    def __init__(self, connect: Connect, count: int, following: Callable[[], Due | None]) -> None:
        self.failures: list[BaseException] = []
        self.answered: list[list[Answered]] = [[] for _ in range(count)]
        self._connect, self._following = connect, following
        self._ready = threading.Barrier(count + 1)
        self._threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def begin(self) -> float:
        """Wait until all are connected, or one cannot be. Returns the time."""
        with suppress(threading.BrokenBarrierError):  # the failure of the one is raised at the end
            self._ready.wait()
        return time.perf_counter()

    def end(self, begin: float) -> Sample:
        """Wait until all have stopped. Returns their measurements. Raises LoadError with the first failure."""
        for thread in self._threads:
            thread.join()
        _complain(self.failures)
        return _sample(begin, self.answered)

    def _call(self, number: int) -> None:
        try:
            score = self._connect()
            self._ready.wait()
            while (due := self._following()) is not None:
                self.answered[number].append(_ask(score, due.request, due.at))
        except Exception as error:  # handed to the main thread, which raises it
            self.failures.append(error)
            self._ready.abort()


def _closed_loop(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    lock = threading.Lock()
    taken, begin = 0, time.perf_counter()

    def following() -> Due | None:
        nonlocal taken
        with lock:
            if callers.failures or (taken >= cell.least and time.perf_counter() - begin >= cell.seconds):
                return None
            taken += 1
            return Due(next(requests))

    callers = _Callers(connect, cell.concurrency, following)
    begin = callers.begin()
    return callers.end(begin)


def _open_loop(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    """Poisson arrivals. A request waits while all ``concurrency`` connections are busy, and its latency counts that."""
    waiting: queue.SimpleQueue[Due | None] = queue.SimpleQueue()
    callers = _Callers(connect, cell.concurrency, waiting.get)
    begin = callers.begin()
    for due in arrivals("poisson", cell.rate, cell.seconds, seed=0):
        at = begin + due
        time.sleep(max(0.0, at - time.perf_counter()))
        if callers.failures:
            break
        waiting.put(Due(next(requests), at))
    for _ in range(cell.concurrency):
        waiting.put(None)
    return callers.end(begin)


def _ask(score: Score, request: Pair, due: float | None = None) -> Answered:
    begun = time.perf_counter()
    scores = score(*request)
    end = time.perf_counter()
    if len(scores) != len(request[1]):
        raise LoadError(f"{len(scores)} scores for {len(request[1])} documents")
    return Answered(begun if due is None else due, end, len(scores))


def _complain(failures: list[BaseException]) -> None:
    real = [failure for failure in failures if not isinstance(failure, threading.BrokenBarrierError)]
    if real:
        raise LoadError(f"{type(real[0]).__name__}: {real[0]}") from real[0]


def _sample(begin: float, answered: list[list[Answered]]) -> Sample:
    """Documents a second from the first request to the last answer, since a system is busy until then.

    Unfinished requests cannot be counted in part from outside, since most of their time may be waiting.
    """
    every = [each for one in answered for each in one]
    if not every:
        raise LoadError("no request was answered: give it more --seconds")
    documents = sum(each.documents for each in every)
    seconds = max(each.end for each in every) - begin
    return Sample(documents / seconds, documents, [1000 * (each.end - each.due) for each in every])
