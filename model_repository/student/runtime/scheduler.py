"""The pairs of all waiting requests in the engine's calls, and each request answered with its last pair, unless it is
refused when it comes, or dropped once its deadline is over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from .admission import Speed, UnavailableError, Waiting
from .packing import FlatPairs, FloatArray
from .pair_queue import PairQueue, Piece, Request

FULL = 0.5  # of a call's tokens: from there on its time is that of its tokens
TICK_S = 1.0


class PastDeadlineError(UnavailableError):
    """Nobody waits for the answer any more."""


class StoppedError(UnavailableError):
    """The scheduler was closed before the request was scored."""


class Scheduler:
    """A thread that keeps the engine busy as long as pairs wait.

    ``score`` takes pairs of up to ``tokens_per_call`` tokens, and ``engine_s`` tells how long the engine itself had for
    the last ones. A request without a deadline is refused where it would wait longer than ``longest_s``. ``watch`` is
    called whenever what waits has changed, ``tick`` every second by the engine's thread, which is the only one that may
    talk to Triton beside the one that submits.

    calls, tokens, engine_s: what the engine has scored so far, without calls in which it failed
    """

    def __init__(
        self,
        score: Callable[[FlatPairs], FloatArray],
        tokens_per_call: int,
        longest_s: float = math.inf,
        watch: Callable[[Waiting], None] = lambda waiting: None,
        tick: Callable[[], None] = lambda: None,
        engine_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._score, self._tokens_per_call, self._longest_s = score, tokens_per_call, longest_s
        self._watch, self._tick, self._engine_s, self._clock = watch, tick, engine_s, clock
        self._queue, self._speed = PairQueue(), Speed()
        self._call_began, self._call_tokens = math.inf, 0
        self.refused = self.dropped = 0
        self.calls = self.tokens = 0
        self.engine_s = 0.0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Raises OverloadedError where the request could not be scored in time, PastDeadlineError where its time is
        over, StoppedError after ``close``."""
        now = self._clock()
        with self._changed:
            if self._closed:
                raise StoppedError("the model is being unloaded")
            if request.urgency.deadline <= now:
                self.dropped += 1
                raise PastDeadlineError("the request came past its deadline")
            waiting = self.waiting()
            if (delay_s := waiting.delay_s(request.left, request.urgency, now)) > 0:
                self.refused += 1
                raise waiting.refusal(delay_s, now)
            request.times.submitted = now
            waiting.requests.insert(self._queue.add(request), (request.left, *request.urgency))
            self._watch(waiting)
            self._changed.notify()

    def waiting(self) -> Waiting:
        """The work that the engine has."""
        speed = self._speed.tokens_per_s
        call_s = self._call_tokens / speed if speed else 0.0
        return Waiting(speed, self._call_began, call_s, self._longest_s, self._queue.rows())

    def close(self) -> None:
        """End the thread after the call that it is in; what has not been scored by then fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for piece in self._queue.take(self._queue.tokens):
            self._end(piece.request, StoppedError("the model was unloaded before this request was scored"))

    def _work(self) -> None:
        ticked = self._clock()
        while not self._closed:
            self._drop_late()
            if pieces := self._next():
                self._run(pieces)
            if self._clock() - ticked >= TICK_S:
                ticked = self._clock()
                self._tick()

    def _drop_late(self) -> None:
        """Answer those whose time is over, before anything of theirs is scored in vain."""
        with self._changed:
            late = self._queue.late(self._clock())
            self.dropped += len(late)
        for request in late:
            self._end(request, PastDeadlineError("the request was past its deadline before it was scored"))

    def _next(self) -> list[Piece]:
        """The pairs of the next call, when there are any; none once closed, or if none come for a while."""
        with self._changed:
            self._call_began = math.inf
            self._watch(self.waiting())
            self._changed.wait_for(lambda: self._closed or self._queue.tokens, TICK_S)
            pieces = [] if self._closed else self._queue.take(self._tokens_per_call)
            if pieces:
                self._call_began = self._clock()
                self._call_tokens = sum(piece.tokens for piece in pieces)
                self._watch(self.waiting())
            return pieces

    def _run(self, pieces: list[Piece]) -> None:
        try:
            scores = self._score(FlatPairs.join([piece.request.pairs(piece.start, piece.stop) for piece in pieces]))
        except Exception as error:  # whatever an engine raises: these requests get it, and the next call is tried
            for piece in pieces:
                self._end(piece.request, error)
            return
        self._note_times({piece.request for piece in pieces})
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])[:-1]
        for piece, part in zip(pieces, np.split(scores, ends), strict=True):
            piece.request.put(piece.start, part)
            if piece.request.scored == piece.request.size:
                self._end(piece.request, piece.request.scores())
        full = self._call_tokens >= FULL * self._tokens_per_call
        self._speed.measure(self._call_tokens, self._clock() - self._call_began, full)

    def _note_times(self, requests: Iterable[Request]) -> None:
        """Count the call that is over, of which these requests had pairs."""
        now, engine_s = self._clock(), self._engine_s()
        self.calls += 1
        self.tokens += self._call_tokens
        self.engine_s += engine_s
        for request in requests:
            request.times.layout_s += now - self._call_began - engine_s
            request.times.engine_s += engine_s
            request.times.scored = now

    def _end(self, request: Request, outcome: FloatArray | Exception) -> None:
        if request.answered:  # it failed, and had two pieces in one call
            return
        request.answered = True
        with self._changed:
            self._queue.drop(request)
        request.answer(outcome)
