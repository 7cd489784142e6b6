"""The pairs of all waiting requests in the engine's calls, and each request answered with its last pair.

A pair costs its tokens. Each call takes pairs of as many tokens as the engine likes, from as many requests as are
needed. Therefore no call waits for more, and a request of 1,000 documents has the engine for one call at a time. The
request with the fewest tokens left goes first, which is the least waiting on the whole. A share of the tokens goes to
the request that has waited longest: otherwise enough small requests would starve a large one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .packing import FlatPairs, FloatArray

# With it a large request takes 8 times as long as alone at worst. With twice the share small ones feel every call.
SHARE_OF_OLDEST = 0.125


class OverloadedError(Exception):
    """More waits than may; the request is to be sent again later, or elsewhere."""


class StoppedError(Exception):
    """The scheduler was closed before the request was scored."""


class Request:
    """A request's pairs, sorted once: the longest first, and pairs of like length side by side.

    ``answer`` is called once, with the scores[N] in the caller's order or with what went wrong.
    """

    def __init__(self, pairs: FlatPairs, answer: Callable[[FloatArray | Exception], None]) -> None:
        self.answer = answer
        self.answered = False
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


class PairQueue:
    """The requests that wait, and which pairs go next. Not for several threads."""

    def __init__(self) -> None:
        self.tokens = 0  # that wait
        self._waiting: list[Request] = []  # in order of arrival
        self._owed = 0.0  # tokens that the request which waits longest has a right to

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self.tokens += request.left

    def take(self, most: int) -> list[Piece]:
        """The next pairs, of at most ``most`` tokens together. A pair that has more alone never goes."""
        room = min(most, self.tokens)
        self._owed += room * SHARE_OF_OLDEST
        pieces: list[Piece] = []
        if self._waiting:
            spent = self._take(self._waiting[0], min(room, self._owed), pieces)
            self._owed -= spent
            room -= spent
        for request in sorted(self._waiting, key=lambda request: request.left):
            if not room:
                break
            room -= self._take(request, room, pieces)
        self._waiting = [request for request in self._waiting if request.left]
        if not self._waiting:
            self._owed = 0.0
        return pieces

    def drop(self, request: Request) -> None:
        """Forget the pairs that no call has taken yet."""
        if request.left:
            self.tokens -= request.left
            self._waiting.remove(request)
            request.taken = request.size

    def _take(self, request: Request, most: float, pieces: list[Piece]) -> int:
        start = request.taken
        spent = request.take(most)
        if request.taken > start:
            pieces.append(Piece(request, start, request.taken))
        self.tokens -= spent
        return spent


class Scheduler:
    """A thread that keeps the engine busy as long as pairs wait.

    ``score`` takes pairs of up to ``tokens_per_call`` tokens. More than ``max_waiting_rows`` full rows of
    ``row_length`` tokens do not wait (0: any number).
    """

    def __init__(
        self,
        score: Callable[[FlatPairs], FloatArray],
        tokens_per_call: int,
        row_length: int,
        max_waiting_rows: int = 0,
    ) -> None:
        self._score, self._tokens_per_call = score, tokens_per_call
        self._row_length, self._max_waiting_rows = row_length, max_waiting_rows
        self._queue = PairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Raises OverloadedError where too much waits already, StoppedError after ``close``."""
        with self._changed:
            waiting, new = (tokens / self._row_length for tokens in (self._queue.tokens, request.left))
            most = self._max_waiting_rows
            if self._closed:
                raise StoppedError("the model is being unloaded")
            if most and waiting and waiting + new > most:
                raise OverloadedError(
                    f"{math.ceil(waiting)} rows wait for the engine and this request has {math.ceil(new)}; at most "
                    f"{most} may wait (max_waiting_rows): send it later, or to another server"
                )
            self._queue.add(request)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the call that it is in; what has not been scored by then fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for piece in self._queue.take(self._queue.tokens):
            self._end(piece.request, StoppedError("the model was unloaded before this request was scored"))

    def _work(self) -> None:
        while pieces := self._next():
            self._run(pieces)

    def _next(self) -> list[Piece]:
        """The pairs of the next call, when there are any; none once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue.tokens)
            if self._closed:
                return []
            return self._queue.take(self._tokens_per_call)

    def _run(self, pieces: list[Piece]) -> None:
        try:
            scores = self._score(FlatPairs.join([piece.request.pairs(piece.start, piece.stop) for piece in pieces]))
        except Exception as error:  # whatever an engine raises: these requests get it, and the next call is tried
            for piece in pieces:
                self._end(piece.request, error)
            return
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])[:-1]
        for piece, part in zip(pieces, np.split(scores, ends), strict=True):
            piece.request.put(piece.start, part)
            if piece.request.scored == piece.request.size:
                self._end(piece.request, piece.request.scores())

    def _end(self, request: Request, outcome: FloatArray | Exception) -> None:
        if request.answered:  # it failed, and had two pieces in one call
            return
        request.answered = True
        with self._changed:
            self._queue.drop(request)
        request.answer(outcome)
