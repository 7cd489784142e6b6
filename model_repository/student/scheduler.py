"""Rows of all waiting requests into the engine's calls, and each request answered with its last row.

Shapes: R rows of a request, L token slots a row, S pairs at most a row.

Each row has a cost: 1 where the engine takes full rows, its tokens where it lays them out itself. Each call takes
rows of as much cost as the engine likes, from as many requests as are needed, so no call waits
for more and a request of 1,000 documents has the engine for one call at a time. The request with the
least cost left goes first, which is the least waiting on the whole; but a share of it all goes to the
one that has waited longest, or small requests, if there were enough of them, would starve a large one.
``python -m bench.scheduling`` compares this with other policies.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = tuple[npt.NDArray[np.int32], ...]  # [R, L] or [R, S], one for each input of the engine
Scores = npt.NDArray[np.float32]  # [R, S], logits
Counts = npt.NDArray[np.int64]

# A large request so takes 8 times as long as alone at worst. Of twice the share, small ones feel every row.
SHARE_OF_OLDEST = 0.125


class OverloadedError(Exception):
    """More rows wait than may; the request is to be sent again later, or elsewhere."""


class StoppedError(Exception):
    """The scheduler was closed before the request was scored."""


@dataclass(eq=False)
class Request:
    """A request's rows and what each costs; ``answer`` is called once, with its scores or with what went wrong."""

    rows: Rows
    costs: Counts  # [R]
    answer: Callable[[Scores | Exception], None]
    taken: int = 0  # rows that a call has taken
    scored: int = 0  # rows that have come back
    parts: dict[int, Scores] = field(default_factory=dict)  # their scores, by the first row
    answered: bool = False

    def __post_init__(self) -> None:
        self._costs = np.concatenate([[0], np.cumsum(self.costs)])  # of all rows before each

    @property
    def size(self) -> int:
        return len(self.rows[0])

    @property
    def cost(self) -> int:
        return int(self._costs[-1])

    @property
    def left(self) -> int:
        """What the rows that no call has taken cost."""
        return int(self._costs[-1] - self._costs[self.taken])

    def take(self, most: float) -> int:
        """Take the next rows that cost ``most`` at most; what they cost."""
        before = self._costs[self.taken]
        self.taken = int(np.searchsorted(self._costs, before + most, "right")) - 1
        return int(self._costs[self.taken] - before)

    def scores(self) -> Scores:
        return np.concatenate([self.parts[start] for start in sorted(self.parts)])


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a request, in one call."""

    request: Request
    start: int
    stop: int


class RowQueue:
    """What waits, in the order in which it goes. Not for several threads."""

    def __init__(self) -> None:
        self.waiting_cost = 0
        self._waiting: list[Request] = []  # in order of arrival
        self._owed = 0.0  # what whoever waits longest has a right to

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self.waiting_cost += request.cost

    def take(self, most: int) -> list[Piece]:
        """The next rows that cost ``most`` in all, or as many as there are; a row that alone costs more does not go."""
        room = min(most, self.waiting_cost)
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
        """Forget the rows that no call has taken yet."""
        if request.left:
            self.waiting_cost -= request.left
            self._waiting.remove(request)
            request.taken = request.size

    def _take(self, request: Request, most: float, pieces: list[Piece]) -> int:
        start = request.taken
        spent = request.take(most)
        if request.taken > start:
            pieces.append(Piece(request, start, request.taken))
        self.waiting_cost -= spent
        return spent


class Scheduler:
    """A thread that keeps the engine busy as long as there are rows.

    ``score`` takes rows that cost up to ``cost_per_call``. More than ``max_waiting_rows`` do not wait (0: any number
    do), where a row, if it is full, costs ``cost_per_row``.
    """

    def __init__(
        self, score: Callable[[Rows], Scores], cost_per_call: int, max_waiting_rows: int = 0, cost_per_row: int = 1
    ) -> None:
        self._score, self._cost_per_call = score, cost_per_call
        self._max_waiting_rows, self._cost_per_row = max_waiting_rows, cost_per_row
        self._queue = RowQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Raises OverloadedError where too much waits already, StoppedError after ``close``."""
        with self._changed:
            waiting, asked = (cost / self._cost_per_row for cost in (self._queue.waiting_cost, request.cost))
            most = self._max_waiting_rows
            if self._closed:
                raise StoppedError("the model is being unloaded")
            if most and waiting and waiting + asked > most:
                raise OverloadedError(
                    f"{math.ceil(waiting)} rows wait for the engine and this request has {math.ceil(asked)}; at most "
                    f"{most} may wait (max_waiting_rows): send it later, or to another server"
                )
            self._queue.add(request)
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after the call that it is in; what has not been scored by then fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for piece in self._queue.take(self._queue.waiting_cost):
            self._end(piece.request, StoppedError("the model was unloaded before this request was scored"))

    def _work(self) -> None:
        while pieces := self._next():
            self._run(pieces)

    def _next(self) -> list[Piece]:
        """The rows of the next call, when there are any; none at all once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue.waiting_cost)
            if self._closed:
                return []
            return self._queue.take(self._cost_per_call)

    def _run(self, pieces: list[Piece]) -> None:
        try:
            scores = self._score(_joined(pieces))
        except Exception as error:  # whatever an engine raises: these requests get it, and the next call is tried
            for piece in pieces:
                self._end(piece.request, error)
            return
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])[:-1]
        for piece, part in zip(pieces, np.split(scores, ends), strict=True):
            piece.request.parts[piece.start] = part
            piece.request.scored += len(part)
            if piece.request.scored == piece.request.size:
                self._end(piece.request, piece.request.scores())

    def _end(self, request: Request, outcome: Scores | Exception) -> None:
        if request.answered:  # it failed, and had two pieces in one call
            return
        request.answered = True
        with self._changed:
            self._queue.drop(request)
        request.answer(outcome)


def _joined(pieces: list[Piece]) -> Rows:
    """The rows of all pieces, as wide as the widest: prepared rows are as long as their request's longest pair."""
    parts = [tuple(array[piece.start : piece.stop] for array in piece.request.rows) for piece in pieces]
    return parts[0] if len(parts) == 1 else tuple(_stacked(arrays) for arrays in zip(*parts, strict=True))


def _stacked(arrays: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    width = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])
