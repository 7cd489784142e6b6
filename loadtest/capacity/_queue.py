"""A server as a queue: its engine takes one request after the other, and the rest of a request's time is no wait.

An M/G/1 queue with the measured times, simulated: no closed formula gives its p99. A request that a server has for
itself takes S, of which the engine is busy for a fixed share; that share may be above 1 where requests under load get
less of the machine. Joined calls, several instances and a cache are in the share, since it is fitted to the measured
curve. Requests of mixed sizes wait in the order of their arrival here; a real server lets small ones overtake.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize

from loadtest._samples import SHARES, Percentiles
from loadtest.capacity._measured import Curve, Floats, Step, times_of

RUNS, REQUESTS = 5, 100_000  # that are drawn: to fit a step, and to foresee a rate
KNOWING = 5_000  # of clients that know something: these are simulated one by one
FITTED = ("p50", "p90", "p99")
WARM = 0.1  # of the requests, left out: the queue was empty
IDLE = 1e-3  # share of the time for which an engine that has nothing to do is busy
MOST_SERVERS = 16  # more are simulated as so many, with the same load each: the others make a wait no longer


class Goal(NamedTuple):
    """At least ``share`` of the requests are answered within ``limit_ms`` of when they were due."""

    limit_ms: float
    share: float


@dataclass(frozen=True)
class Queue:
    """``alone`` are the times of a request at the lowest rate, ``scale`` makes them those of a server that is idle.

    ``busy_ms`` is the time for which a request of ``documents`` occupies the engine, the mean.
    """

    alone: Percentiles
    scale: float
    busy_ms: float
    documents: float

    @property
    def saturation(self) -> float:
        """Requests a second that the engine cannot exceed."""
        return 1000 / self.busy_ms

    def of(self, documents: float) -> Queue:
        """The queue for requests of another number of documents, whose times are in proportion."""
        factor = documents / self.documents
        return Queue(self.alone, self.scale * factor, self.busy_ms * factor, documents)

    def draw(self, shares: Floats) -> tuple[Floats, Floats]:
        """Milliseconds of the engine, and those beside it, of requests with these shares, from 0 to 1."""
        whole = self.scale * times_of(self.alone, shares)
        busy = whole * self.busy_ms / (self.scale * self.alone.mean)
        return busy, np.maximum(whole - busy, 0.0)

    def latencies(self, rate: float, poisson: bool, shares: Floats, gaps: Floats) -> Floats:
        """Milliseconds [runs, requests] at ``rate`` requests a second; ``gaps`` are exponential, of mean 1."""
        busy, beside = self.draw(shares)
        between = (gaps if poisson else np.ones_like(gaps)) * 1000 / rate
        # Lindley: a wait is what is left of the work before, or nothing; the sum since the last moment without work.
        walk = np.cumsum(busy[:, :-1] - between[:, 1:], axis=1)
        walk = np.concatenate([np.zeros((len(walk), 1)), walk], axis=1)
        return np.asarray(walk - np.minimum.accumulate(walk, axis=1) + busy + beside)

    def fleet(self, rate: float, servers: int, clients: int) -> Floats:
        """Milliseconds of requests at ``rate`` requests a second in all, warm.

        Each client sends to the server on which it has the least under way itself. 0 clients are so many that none of
        them knows anything, so that shares are random.
        """
        drawn = np.random.default_rng(0)
        if not clients:
            shares, gaps = drawn.random((1, REQUESTS)), drawn.exponential(size=(1, REQUESTS))
            return self.latencies(rate / servers, True, shares, gaps)[0, int(WARM * REQUESTS) :]
        due = np.cumsum(drawn.exponential(1000 / rate, KNOWING))
        busy, beside = self.draw(drawn.random(KNOWING))
        senders = [_Client(servers) for _ in range(clients)]
        free, ends = [0.0] * servers, np.empty(KNOWING)
        chosen_by = drawn.integers(clients, size=KNOWING).tolist()
        requests = zip(due.tolist(), busy.tolist(), beside.tolist(), chosen_by, strict=True)
        for number, (now, work, rest, sender) in enumerate(requests):
            server = senders[sender].take(now)
            free[server] = max(free[server], now) + work
            ends[number] = end = free[server] + rest
            heapq.heappush(senders[sender].under_way, (end, server))
        return np.asarray(ends - due)[int(WARM * KNOWING) :]


class _Client:
    """The balancer of client/balancer.py: the server with the least under way of this client, in turns."""

    def __init__(self, servers: int) -> None:
        self.under_way, self._load, self._next = list[tuple[float, int]](), [0] * servers, 0

    def take(self, now: float) -> int:
        load = self._load
        while self.under_way and self.under_way[0][0] <= now:
            load[heapq.heappop(self.under_way)[1]] -= 1
        least = min(load)
        turns = [*range(self._next, len(load)), *range(self._next)] if load[self._next] > least else [self._next]
        server = next(turn for turn in turns if load[turn] == least)
        load[server] += 1
        self._next = (server + 1) % len(load)
        return server


def fit(curve: Curve) -> Queue:
    """The queue whose percentiles are nearest to those of the curve, in logarithms, over runs as long as the steps."""
    lowest = curve.steps[0]
    drawn = [_drawn(step, number) for number, step in enumerate(curve.steps)]

    def of(scale_and_busy: Floats) -> Queue:
        scale, busy = np.exp(scale_and_busy)
        return Queue(lowest.latency, scale, busy * lowest.latency.mean, curve.documents)

    def distance(scale_and_busy: Floats) -> float:
        queue = of(scale_and_busy)
        return sum(
            abs(math.log(foreseen / getattr(step.latency, name)))  # not squared: one step may have been disturbed
            for step, draw in zip(curve.steps, drawn, strict=True)
            for name, foreseen in _foreseen(queue, step, draw).items()
        )

    known = min(1.0, 1000 / (curve.highest * lowest.latency.mean))
    return of(minimize(distance, np.log([1.0, 0.9 * known]), method="Nelder-Mead", options={"xatol": 1e-3}).x)


def foreseen(queue: Queue, step: Step, number: int) -> dict[str, float]:
    """The percentiles in milliseconds that the queue has where the step was measured."""
    return _foreseen(queue, step, _drawn(step, number))


def _drawn(step: Step, number: int) -> tuple[Floats, Floats]:
    drawn, size = np.random.default_rng(number), (RUNS, step.requests)
    return drawn.random(size), drawn.exponential(size=size)


def _foreseen(queue: Queue, step: Step, draw: tuple[Floats, Floats]) -> dict[str, float]:
    latencies = queue.of(step.documents).latencies(step.rate, step.poisson, *draw)
    each = np.quantile(latencies, [SHARES[name] for name in FITTED], axis=1)  # of every run
    return dict(zip(FITTED, np.median(each, axis=1).tolist(), strict=True))


def highest_rate(queue: Queue, servers: int, clients: int, goal: Goal, most_busy: float) -> float:
    """Requests a second of ``servers`` together, up to which the goal holds, and the engines are busy for at most the
    share ``most_busy``; 0 if an idle server is too slow."""
    return servers * _highest_of_one(queue, min(servers, MOST_SERVERS) if clients else 1, clients, goal, most_busy)


@cache
def _highest_of_one(queue: Queue, simulated: int, clients: int, goal: Goal, most_busy: float) -> float:
    """The rate of each of so many servers, which are simulated. Numbers of servers that are alike are searched once."""

    def room(busy: float) -> float:
        """Above 0 where the goal holds."""
        latencies = queue.fleet(busy * queue.saturation * simulated, simulated, clients)
        return float(np.log(goal.limit_ms / np.quantile(latencies, goal.share)))

    if room(IDLE) <= 0:
        return 0.0
    busy = most_busy if room(most_busy) >= 0 else float(brentq(room, IDLE, most_busy, xtol=3e-3))
    return busy * queue.saturation
