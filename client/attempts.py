"""Which server a call goes to, and whether it is tried again."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from tritonclient.utils import InferenceServerException

from client.connection import Connection, connection
from client.errors import RankingError, RequestTimeoutError, status_of, translated

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # doubled at each attempt; what is waited is drawn below it
AGAIN = "UNAVAILABLE"
FAILED = (AGAIN, "DEADLINE_EXCEEDED")  # the server may hang
NOT_FOUND = "NOT_FOUND"  # said by a server that stops, too, so another one is asked; the same one is not
ASIDE_S = 5.0  # for which a server that failed is taken only if there is no other


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
            best = min(turns, key=lambda one: (one in tried, self._failed[one] > now, self._load[one]))
            self._next = (best + 1) % count
            self._load[best] += documents
            return best

    def give_back(self, server: int, documents: int, failed: bool) -> None:
        with self._lock:
            self._load[server] -= documents
            if failed:
                self._failed[server] = time.monotonic() + ASIDE_S


class Caller(ABC):
    """What a client is beside its calls: settings, the load of each server, and their limit once it was asked."""

    def __init__(
        self,
        servers: str | Sequence[str] = "localhost:8001",
        model: str = "ranker",
        timeout_s: float = 30.0,
        **settings: Any,
    ) -> None:
        self.connection = connection(servers, model, timeout_s, **settings)
        self._balancer = Balancer(len(self.connection.servers))
        self._limit = self.connection.max_documents
        self._open()

    @classmethod
    def of(cls, connection: Connection) -> Self:
        fields = dict(vars(connection))
        return cls(**fields)

    @abstractmethod
    def _open(self) -> None:
        """Connect, or be ready to."""


class Attempt:
    """One try of a call, to be made in a ``with`` block after ``pause_s``: it raises what is final, as a RankingError,
    and swallows what is worth another attempt."""

    def __init__(self, attempts: Attempts, pause_s: float) -> None:
        self._attempts = attempts
        self.pause_s = pause_s
        self.server = -1  # the index, once entered

    @property
    def left_s(self) -> float:
        return max(self._attempts.ends - time.monotonic(), 1e-4)

    def __enter__(self) -> Attempt:
        attempts = self._attempts
        self.server = attempts.balancer.take(attempts.documents, attempts.tried)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        attempts = self._attempts
        status = status_of(error) if isinstance(error, InferenceServerException) else ""
        attempts.balancer.give_back(self.server, attempts.documents, failed=status in FAILED)
        if not isinstance(error, InferenceServerException):
            return False
        attempts.tried.add(self.server)
        connection = attempts.connection
        failure = translated(error, connection.servers[self.server], connection.model, attempts.timeout_s)
        attempts.failure = failure
        if status != AGAIN and not (status == NOT_FOUND and attempts.has_untried):
            raise failure from error
        failure.__cause__ = error
        return True


class Attempts:
    """The attempts of one call for ``documents`` documents, until ``ends`` (by time.monotonic)."""

    def __init__(
        self, connection: Connection, balancer: Balancer, documents: int, ends: float, timeout_s: float
    ) -> None:
        self.connection, self.balancer, self.documents = connection, balancer, documents
        self.ends, self.timeout_s = ends, timeout_s
        self.tried = set[int]()
        self.failure: RankingError | None = None

    def __iter__(self) -> Iterator[Attempt]:
        """Raises the last failure when there is no attempt, or no time, left."""
        for number in range(self.connection.attempts):
            pause = self._pause(number)
            left = self.ends - time.monotonic()
            if self.failure is not None and pause >= left:
                break
            if left <= 0:
                server = ", ".join(self.connection.servers)
                raise RequestTimeoutError(
                    f"{server}: the time limit of {self.timeout_s:.3g} s was over before this part was sent: raise it",
                    server,
                )
            yield Attempt(self, pause)
        assert self.failure is not None
        raise self.failure

    @property
    def has_untried(self) -> bool:
        return len(self.tried) < len(self.connection.servers)

    def _pause(self, number: int) -> float:
        """Nothing before a server not tried yet; else drawn, so that clients do not come back together."""
        if self.has_untried:
            return 0.0
        return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number))
