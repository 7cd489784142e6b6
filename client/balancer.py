"""Which server a request goes to, and which ones stand aside.

A server that is overloaded stands aside as long as it asked for. One that is broken, or gave no answer in time, stands
aside until it has scored something: a probe, or a request when no other server was there. Probes become due at growing
pauses and are sent when requests come, so a server that nobody needs is left alone.

A server that is merely slow would still get a request whenever it has nothing under way. Its load therefore counts as
many times as its requests take longer than most do; Finagle's balancer weighs loads by latencies, too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from client.errors import Fault, RankingError, ServerOverloadedError

FIRST_PROBE_S, LAST_PROBE_S = 0.5, 15.0
LONGEST_ASIDE_S = 30.0  # whatever an overloaded server asks for
FREE, BUSY, BROKEN = range(3)
SLOW = 2.0  # times the usual; below it the machine's other work may be the cause
LATEST, FORGOTTEN_S = 0.3, 15.0  # weight of the latest request, and how long a server that is spared stays slow


class Health(NamedTuple):
    """The state of a server, as a client knows it.

    aside: whether it gets requests only if no other server is free
    load: documents under way from this client
    faults: how often it was "late", "overloaded" or "broken", probes included
    """

    server: str
    aside: bool
    load: int
    faults: dict[Fault, int]


@dataclass
class _Server:
    load: int = 0  # documents under way
    busy_until: float = 0.0
    probe_due: float | None = None  # of one that is broken
    pause_s: float = FIRST_PROBE_S  # after the probe that is due
    slowness: float = 1.0  # how many times the usual time its requests took, at ``timed``
    timed: float = -math.inf
    faults: dict[Fault, int] = field(default_factory=lambda: {"late": 0, "overloaded": 0, "broken": 0})

    def state(self, now: float) -> int:
        if self.probe_due is not None:
            return BROKEN
        return BUSY if self.busy_until > now else FREE

    def slow_at(self, now: float) -> float:
        return 1 + (self.slowness - 1) * math.exp((self.timed - now) / FORGOTTEN_S)

    def cost(self, documents: int, now: float) -> float:
        """The wait of a request of so many documents, in documents of a server that is not slow."""
        slow = self.slow_at(now)
        return (self.load + documents) * (slow if slow >= SLOW else 1.0)


class Balancer:
    """The load and health of each server, by its index in ``names``. For any number of threads."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.names, self._lock, self._clock = tuple(names), threading.Lock(), clock
        self._servers = [_Server() for _ in names]
        self._next = 0

    def take(self, documents: int, tried: set[int]) -> int:
        """The server for a request that ``tried`` some already: one that is free, where it costs least, in turns."""
        with self._lock:
            best = self._best(documents, tried)
            self._take(best, documents)
            return best

    def take_free(self, documents: int, tried: set[int]) -> int | None:
        """The same, but only a free server that was not tried; None if there is none."""
        with self._lock:
            best = self._best(documents, tried)
            if best in tried or self._servers[best].state(self._clock()) != FREE:
                return None
            self._take(best, documents)
            return best

    def give_back(self, server: int, documents: int) -> None:
        """The request is no longer under way."""
        with self._lock:
            self._servers[server].load -= documents

    def answered(self, server: int) -> None:
        """The server scored something: it is not broken."""
        with self._lock:
            self._servers[server].probe_due = None

    def took(self, server: int, times: float) -> None:
        """A request to the server took so many times as long as such requests mostly do, or longer."""
        with self._lock:
            one, now = self._servers[server], self._clock()
            before = one.slow_at(now)
            one.slowness, one.timed = before + LATEST * (times - before), now

    def failed(self, server: int, failure: RankingError) -> None:
        """Let the server stand aside, if the fault is its own."""
        if not failure.fault:
            return
        with self._lock:
            one, now = self._servers[server], self._clock()
            one.faults[failure.fault] += 1
            if isinstance(failure, ServerOverloadedError):  # which a broken one would not say
                one.probe_due = None
                one.busy_until = max(one.busy_until, now + min(failure.retry_after_s, LONGEST_ASIDE_S))
            elif one.probe_due is None:
                late = failure.fault == "late"  # it may be well, and the time limit short: a probe tells
                one.probe_due, one.pause_s = now + (0.0 if late else FIRST_PROBE_S), FIRST_PROBE_S

    def to_probe(self, but: int) -> list[int]:
        """The broken servers, ``but`` one, whose probe is due. The next one becomes due later, whatever comes of it."""
        with self._lock:
            now = self._clock()
            due = [
                number
                for number, one in enumerate(self._servers)
                if number != but and one.probe_due is not None and one.probe_due <= now
            ]
            for one in map(self._servers.__getitem__, due):
                one.probe_due = now + one.pause_s
                one.pause_s = min(2 * one.pause_s, LAST_PROBE_S)
            return due

    def is_broken(self, server: int) -> bool:
        with self._lock:
            return self._servers[server].probe_due is not None

    def health(self) -> list[Health]:
        with self._lock:
            now = self._clock()
            return [
                Health(name, one.state(now) != FREE, one.load, dict(one.faults))
                for name, one in zip(self.names, self._servers, strict=True)
            ]

    def _best(self, documents: int, tried: set[int]) -> int:
        count, now = len(self._servers), self._clock()
        turns = [(self._next + step) % count for step in range(count)]

        def worse(turn: int) -> tuple[bool, int, float]:
            one = self._servers[turn]
            return turn in tried, one.state(now), one.cost(documents, now)

        return min(turns, key=worse)

    def _take(self, server: int, documents: int) -> None:
        self._next = (server + 1) % len(self._servers)
        self._servers[server].load += documents
