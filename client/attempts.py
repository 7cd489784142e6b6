"""How long a call may take, which servers it asks one after the other, and how many retries there are at all."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from client.balancer import Balancer
from client.connection import LONGEST_S
from client.errors import EVERY, InvalidRequestError, RankingError, RequestTimeoutError, ServerOverloadedError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
RETRY_SHARE, FIRST_RETRIES, MOST_RETRIES = 0.1, 10.0, 100.0
ASKED, FEW, REMEMBERED_S = 1.1, 10.0, 1.0


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


class RetryBudget:
    """The second requests, retries and hedges, that a client may send: a tenth of the first ones, and ten more.

    Up to a hundred are saved for the moment when a server with many requests under way breaks. When all servers are in
    trouble, retries so add a tenth to their load, however many calls fail. For any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = FIRST_RETRIES
        self.spent = 0

    def earn(self) -> None:
        """Count a first request."""
        with self._lock:
            self._left = min(self._left + RETRY_SHARE, MOST_RETRIES)

    def spend(self) -> bool:
        """Take one; False if none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            self.spent += 1
            return True


class Throttle:
    """Requests that a client refuses itself, because its servers would: sending and refusing them takes time that
    answers need.

    While fewer than nine in ten of the last second's requests are answered, as many are refused here as to leave the
    servers a tenth more than they answer (Beyer et al., Site Reliability Engineering, 2016, chapter 21). The first
    ten say nothing. For any number of threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock, self._at = threading.Lock(), clock, clock()
        self._requests = self._answers = 0.0  # those of the past count less and less
        self._refusal: ServerOverloadedError | None = None

    def check(self) -> None:
        """Raises ServerOverloadedError for a request that is not to be sent."""
        with self._lock:
            self._forget()
            unanswered = self._requests - ASKED * self._answers - FEW
            if self._refusal is None or random.random() * self._requests >= unanswered:
                return
            self._requests += 1
            raise self._refusal.reworded(f"{self._refusal}; not sent, since most requests are refused")

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the request of the block, if it is answered or refused; other errors say nothing."""
        try:
            yield
        except ServerOverloadedError as refusal:
            self.overloaded(refusal)
            raise
        self.answered()

    def answered(self) -> None:
        """Count a request that was scored."""
        with self._lock:
            self._forget()
            self._requests += 1
            self._answers += 1

    def overloaded(self, refusal: ServerOverloadedError) -> None:
        """Count a request that was refused, and not answered by another server."""
        with self._lock:
            self._forget()
            self._requests += 1
            self._refusal = refusal

    def _forget(self) -> None:
        now = self._clock()
        kept, self._at = math.exp((self._at - now) / REMEMBERED_S), now
        self._requests *= kept
        self._answers *= kept


class Attempts:
    """The attempts of one request, each at another server while there is one; ``failure`` is what they end with."""

    def __init__(self, balancer: Balancer, budget: RetryBudget, documents: int, most: int, deadline: Deadline) -> None:
        self._balancer, self._budget, self._documents, self._deadline = balancer, budget, documents, deadline
        self._most, self._made, self._elsewhere, self._again = most, 0, EVERY, False
        self.tried = set[int]()
        self.failure: RankingError = RequestTimeoutError(
            f"{', '.join(balancer.names)}: the time limit of {deadline.limit_s:.3g} s was over before this part was "
            "sent: raise it"
        )

    def wait_s(self) -> float | None:
        """How long to wait before the next attempt; None if there is none. A second attempt takes from the budget."""
        if not self._made:
            self._budget.earn()
            return 0.0 if self._deadline.left_s > 0 else None
        everywhere = len(self.tried) == len(self._balancer.names)
        if self._made >= self._most or not self._elsewhere or (everywhere and not self._again):
            return None
        pause = pause_s(self._made) if everywhere else 0.0
        return pause if pause < self._deadline.left_s and self._budget.spend() else None

    def take(self) -> int:
        """The server for the next attempt."""
        self._made += 1
        return self._balancer.take(self._documents, self.tried)

    def failed(self, server: int, failure: RankingError) -> None:
        self._balancer.failed(server, failure)
        self._elsewhere = min(self._elsewhere - bool(self.tried), failure.elsewhere)
        self._again = failure.again
        if isinstance(failure, RequestTimeoutError) and self.tried:  # what was said before may be why time ran out
            failure.args = (f"{failure}; before that, {self.failure}",)
        self.tried.add(server)
        if not isinstance(self.failure, ServerOverloadedError):
            self.failure = failure
        elif isinstance(failure, ServerOverloadedError):
            self.failure = min(self.failure, failure, key=lambda refusal: refusal.retry_after_s)


def pause_s(attempt: int) -> float:
    """How long to wait before trying a server again: drawn, so that clients do not come back together."""
    return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 10)))
