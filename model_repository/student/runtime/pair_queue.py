"""Whose pairs go first.

A pair costs its tokens. Each call of the engine takes pairs of as many tokens as it likes, from as many requests as are
needed. Therefore no call waits for more, and a request of 1,000 documents has the engine for one call at a time. What a
person waits for goes before what a job wants. Of both a request overtakes those that are much larger, and those of like
size go in the order in which they came. A share of the tokens goes to the request that has waited longest: otherwise
enough small or urgent requests would starve the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .admission import ANY_TIME, Urgency, place_of
from .packing import FlatPairs, FloatArray

# With it a large request takes 8 times as long as alone at worst. With twice the share small ones feel every call.
SHARE_OF_OLDEST = 0.125


@dataclass
class Times:
    """Where a request's time went: times of time.monotonic, and seconds.

    layout_s, engine_s: of the calls that had pairs of it, whoever else's pairs they had too
    """

    submitted: float = 0.0
    layout_s: float = 0.0
    engine_s: float = 0.0
    scored: float = 0.0  # when its last call was over

    def parts_s(self, came: float, answered: float) -> tuple[float, ...]:
        """Seconds of a request that ``came`` and was ``answered`` then: intake, waiting for calls, layout, engine,
        answer."""
        in_calls_s = self.layout_s + self.engine_s
        waiting_s = max(0.0, self.scored - self.submitted - in_calls_s)
        return self.submitted - came, waiting_s, self.layout_s, self.engine_s, answered - self.scored


class Request:
    """A request's pairs, sorted once: the longest first, and pairs of like length side by side.

    ``answer`` is called once, with the scores[N] in the caller's order or with what went wrong.
    """

    def __init__(
        self, pairs: FlatPairs, answer: Callable[[FloatArray | Exception], None], urgency: Urgency = ANY_TIME
    ) -> None:
        self.answer, self.urgency = answer, urgency
        self.answered = False
        self.times = Times()
        self.taken = self.scored = 0  # pairs that a call has taken, and those that have come back
        self._order = np.argsort(-pairs.lengths, kind="stable")
        self._pairs = pairs[self._order]
        self._tokens = np.concatenate([[0], np.cumsum(self._pairs.lengths)])  # of all pairs before each
        self._scores = np.empty(len(pairs), np.float32)

    @property
    def size(self) -> int:
        return len(self._pairs)

    @property
    def left(self) -> int:
        """The tokens of the pairs that no call has taken."""
        return int(self._tokens[-1] - self._tokens[self.taken])

    def take(self, most: float) -> int:
        """Take the next pairs that have at most ``most`` tokens together; returns how many they have."""
        before = self._tokens[self.taken]
        self.taken = int(np.searchsorted(self._tokens, before + most, "right")) - 1
        return int(self._tokens[self.taken] - before)

    def pairs(self, start: int, stop: int) -> FlatPairs:
        return self._pairs[start:stop]

    def put(self, start: int, scores: FloatArray) -> None:
        """Keep the scores of the pairs from ``start`` on."""
        self._scores[self._order[start : start + len(scores)]] = scores
        self.scored += len(scores)

    def scores(self) -> FloatArray:
        return self._scores


class Piece(NamedTuple):
    """Pairs ``start`` to ``stop`` of a request, in one call."""

    request: Request
    start: int
    stop: int
    tokens: int


class PairQueue:
    """The requests that wait, and which pairs go next. Not for several threads."""

    def __init__(self) -> None:
        self.tokens = 0  # that wait
        self.waiting: list[Request] = []  # in their turn
        self._arrived: list[Request] = []  # the same, in order of arrival
        self._owed = 0.0  # tokens that the request which waits longest has a right to

    def add(self, request: Request) -> int:
        """Returns the place in ``waiting`` that the request gets."""
        place = place_of(request.left, request.urgency.priority, self.rows())
        self.waiting.insert(place, request)
        self._arrived.append(request)
        self.tokens += request.left
        return place

    def rows(self) -> list[tuple[float, float, float]]:
        """The tokens left, priority and deadline of each, in their turn."""
        return [(request.left, *request.urgency) for request in self.waiting]

    def take(self, most: int) -> list[Piece]:
        """The next pairs, of at most ``most`` tokens together. A pair that has more alone never goes."""
        room = min(most, self.tokens)
        self._owed += room * SHARE_OF_OLDEST
        pieces: list[Piece] = []
        if self.waiting:
            spent = self._take(self._arrived[0], min(room, self._owed), pieces)
            self._owed -= spent
            room -= spent
        for request in self.waiting:
            if not room:
                break
            room -= self._take(request, room, pieces)
        self.waiting, self._arrived = ([one for one in each if one.left] for each in (self.waiting, self._arrived))
        if not self.waiting:
            self._owed = 0.0
        return pieces

    def late(self, now: float) -> list[Request]:
        """Those that nobody waits for any more."""
        return [request for request in self.waiting if request.urgency.deadline <= now]

    def drop(self, request: Request) -> None:
        """Forget the pairs that no call has taken yet."""
        if request.left:
            self.tokens -= request.left
            self.waiting.remove(request)
            self._arrived.remove(request)
            request.taken = request.size

    def _take(self, request: Request, most: float, pieces: list[Piece]) -> int:
        start = request.taken
        spent = request.take(most)
        if request.taken > start:
            pieces.append(Piece(request, start, request.taken, spent))
        self.tokens -= spent
        return spent
