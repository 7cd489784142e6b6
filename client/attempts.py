"""Which server a call goes to, how long it may take, and when it is tried again."""

from __future__ import annotations

import random
import threading
import time
from typing import NamedTuple

from client.connection import LONGEST_S
from client.errors import InvalidRequestError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
ASIDE_S = 5.0  # for which a server that failed is taken only if there is no other
AGAIN = "UNAVAILABLE"
FAILED = (AGAIN, "DEADLINE_EXCEEDED")  # the server may hang
NOT_FOUND = "NOT_FOUND"  # said by a server that stops, too, so another one is asked; the same one is not


class Balancer:
    """The load of each server, in documents under way. For any number of threads."""

    def __init__(self, servers: int) -> None:
        self._lock = threading.Lock()
        self._load = [0] * servers
        self._failed = [0.0] * servers  # until when it stands aside
        self._next = 0

    def take(self, documents: int, tried: set[int]) -> int:
        """The index of a server, by whether this call has tried it, whether it failed of late, its load, and turns."""
        with self._lock:
            count, now = len(self._load), time.monotonic()
            turns = [(self._next + step) % count for step in range(count)]
            best = min(turns, key=lambda server: (server in tried, self._failed[server] > now, self._load[server]))
            self._next = (best + 1) % count
            self._load[best] += documents
            return best

    def give_back(self, server: int, documents: int, failed: bool) -> None:
        with self._lock:
            self._load[server] -= documents
            if failed:
                self._failed[server] = time.monotonic() + ASIDE_S


class Deadline(NamedTuple):
    """The end of a whole call, with all its attempts.

    limit_s: the time that the call had at its start
    ends: by time.monotonic
    """

    limit_s: float
    ends: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """Raises InvalidRequestError for a limit that is no number, or too large to count with."""
        if not limit_s <= LONGEST_S:
            raise InvalidRequestError(f"timeout_s must be at most {LONGEST_S:g}, not {limit_s:g}")
        return cls(limit_s, time.monotonic() + limit_s)

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()


def pause_s(attempt: int) -> float:
    """How long to wait before trying a server again: drawn, so that clients do not come back together."""
    return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 10)))
