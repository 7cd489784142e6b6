"""The open loop: send requests at scheduled times, whether or not earlier ones were answered. Uses gevent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent
from gevent.event import Event

from client import RankingError
from loadtest._samples import Sample, kind_of
from loadtest._traffic import Request

Send = Callable[[Request], None]  # returns with the answer, raises RankingError
Heard = Callable[[Sample, RankingError | None], None]
Schedule = Iterable[tuple[float, Request]]
BEYOND_BOUND = "not sent: as many requests as may be were in flight"
UNANSWERED = "no answer yet when the run was stopped"
STOPPED_PATIENCE_S = 3.0


class Outcome(NamedTuple):
    """The requests of a run."""

    samples: list[Sample]
    cut_at: float | None  # seconds from the beginning, where the run was stopped before its schedule was over


class OpenLoop:
    """Latency counts from when a request was due, and therefore includes any time that it waits here.

    A request that is due while ``bound`` requests are in flight is not sent and counts as failed. A server that stops
    answering therefore cannot make the load generator hold ever more requests.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._stop = Event()
        self.in_flight = 0

    def stop(self) -> None:
        """Send no more requests; those in flight get some seconds."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return bool(self._stop.is_set())

    def run(self, schedule: Schedule, begin: float, send: Send, heard: Heard) -> Outcome:
        """Send all requests of ``schedule`` and wait for the last answer.

        Each is due some seconds after ``begin``, a time of time.perf_counter. Requests due before it (negative) are
        warm-up and in no sample.
        """
        samples: list[Sample] = []

        def note(sample: Sample, failure: RankingError | None) -> None:
            if sample.due >= 0:
                samples.append(sample._replace(failure=kind_of(failure)))
                heard(samples[-1], failure)

        under_way: dict[gevent.Greenlet, Sample] = {}
        cut_at: float | None = None
        for due, request in schedule:
            unsent = Sample(due, due, due, len(request.documents), request.request_bytes, 0)
            # A wait of 0 too: it lets the greenlets run that are ready.
            if self._stop.wait(max(0.0, begin + due - time.perf_counter())):
                cut_at = time.perf_counter() - begin
                break
            if self.in_flight >= self._bound:
                note(unsent._replace(dropped=True), RankingError(BEYOND_BOUND))
                continue
            self.in_flight += 1
            greenlet = gevent.spawn(self._ask, request, unsent, begin, send, note)
            under_way[greenlet] = unsent
            greenlet.rawlink(under_way.pop)
        self._wait(under_way)
        for unsent in under_way.values():
            note(unsent._replace(end=time.perf_counter() - begin), RankingError(UNANSWERED))
        return Outcome(samples, cut_at)

    def _wait(self, under_way: dict[gevent.Greenlet, Sample]) -> None:
        """Wait for the answers. Every call has a time limit, therefore this ends; sooner once the run is stopped."""
        patience = STOPPED_PATIENCE_S
        while under_way and patience > 0:
            waited = time.perf_counter()
            gevent.joinall(list(under_way), timeout=0.2)
            if self.stopped:
                patience -= time.perf_counter() - waited

    def _ask(self, request: Request, unsent: Sample, begin: float, send: Send, note: Heard) -> None:
        failure: RankingError | None = None
        sent = time.perf_counter() - begin
        try:
            send(request)
        except RankingError as error:
            failure = error
        finally:
            self.in_flight -= 1
        end = time.perf_counter() - begin
        answer = 0 if failure else request.response_bytes
        note(unsent._replace(sent=sent, end=end, response_bytes=answer), failure)
