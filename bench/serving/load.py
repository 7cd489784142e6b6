"""The load: callers who wait for their answers, or requests that arrive whether or not. Standard library only."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.serving.job import Cell, Pair, Sample

Score = Callable[[str, tuple[str, ...]], list[float]]
Connect = Callable[[], Score]  # called once in each thread


class LoadError(Exception):
    """A system that fails under load, or answers what was not asked."""


@dataclass(frozen=True)
class Answered:
    """One request, in seconds of time.perf_counter: due, begun, answered."""

    due: float
    begun: float
    end: float
    documents: int


def measure(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    """Raises LoadError with the first failure of any request."""
    return _open_loop(connect, requests, cell) if cell.rate else _closed_loop(connect, requests, cell)


def _closed_loop(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    lock, failures = threading.Lock(), list[BaseException]()
    answered: list[list[Answered]] = [[] for _ in range(cell.concurrency)]
    ready = threading.Barrier(cell.concurrency + 1)
    taken = 0
    begin = 0.0

    def following() -> Pair | None:
        nonlocal taken
        with lock:
            if failures or (taken >= cell.least and time.perf_counter() - begin >= cell.seconds):
                return None
            taken += 1
            return next(requests)

    def caller(number: int) -> None:
        try:
            score = connect()
            ready.wait()
            while (request := following()) is not None:
                answered[number].append(_ask(score, request))
        except Exception as error:  # handed to the main thread, which raises it
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(cell.concurrency)]
    for thread in threads:
        thread.start()
    begin = time.perf_counter()
    _together(ready)
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    _complain(failures)
    return _sample(begin, answered)


def _open_loop(connect: Connect, requests: Iterator[Pair], cell: Cell) -> Sample:
    """Poisson arrivals; what finds all ``concurrency`` connections busy waits, and that counts."""
    failures = list[BaseException]()
    answered: list[list[Answered]] = [[] for _ in range(cell.concurrency)]
    waiting: queue.SimpleQueue[tuple[float, Pair] | None] = queue.SimpleQueue()
    ready = threading.Barrier(cell.concurrency + 1)

    def server(number: int) -> None:
        try:
            score = connect()
            ready.wait()
            while (item := waiting.get()) is not None:
                answered[number].append(_ask(score, item[1], item[0]))
        except Exception as error:  # handed to the main thread, which raises it
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=server, args=(number,), daemon=True) for number in range(cell.concurrency)]
    for thread in threads:
        thread.start()
    _together(ready)
    begin = time.perf_counter()
    for due in _arrivals(begin, cell):
        time.sleep(max(0.0, due - time.perf_counter()))
        if failures:
            break
        waiting.put((due, next(requests)))
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    _complain(failures)
    return _sample(begin, answered)


def _arrivals(begin: float, cell: Cell) -> Iterator[float]:
    draw, due = random.Random(0), begin
    while (due := due + draw.expovariate(cell.rate)) < begin + cell.seconds:
        yield due


def _ask(score: Score, request: Pair, due: float | None = None) -> Answered:
    begun = time.perf_counter()
    scores = score(*request)
    end = time.perf_counter()
    if len(scores) != len(request[1]):
        raise LoadError(f"{len(scores)} scores for {len(request[1])} documents")
    return Answered(begun if due is None else due, begun, end, len(scores))


def _together(ready: threading.Barrier) -> None:
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        return  # a caller could not connect: its failure is raised


def _complain(failures: list[BaseException]) -> None:
    real = [failure for failure in failures if not isinstance(failure, threading.BrokenBarrierError)]
    if real:
        raise LoadError(f"{type(real[0]).__name__}: {real[0]}") from real[0]


def _sample(begin: float, answered: list[list[Answered]]) -> Sample:
    """Documents a second from the first request to the last answer: a system is busy until then.

    A share of what is under way when a caller stops cannot be told from outside: most of it may only have waited.
    """
    every = [each for one in answered for each in one]
    if not every:
        raise LoadError("no request was answered: give it more --seconds")
    documents = sum(each.documents for each in every)
    seconds = max(each.end for each in every) - begin
    return Sample(documents / seconds, documents, [1000 * (each.end - each.due) for each in every])
