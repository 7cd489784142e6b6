"""Runs: one rate, a search for the highest rate, or users in a closed loop. Each makes a report."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import gevent
from gevent.event import Event

from client import RankingClient
from client.statistics import Spent
from loadtest._flags import Settings
from loadtest._generator import Watch, surroundings, with_limits
from loadtest._open_loop import Heard, OpenLoop, Send
from loadtest._records import SINGLE, Generator, ModelTimes, Point, Report, summarise
from loadtest._results import (
    bottleneck,
    closed_result,
    described,
    in_a_line,
    notes,
    plan_in_words,
    rate_result,
    search_result,
)
from loadtest._samples import Sample
from loadtest._schedule import arrivals
from loadtest._search import CONFIRMATION, Found, find_highest, judge
from loadtest._server import Statistics, between
from loadtest._traffic import Request, traffic

CONFIRMATION_TIMES = 3  # as long as a step


class StoppedError(Exception):
    """The user stopped the run."""


@dataclass
class Course:
    """The server, the requests and the measurements, which users and listeners share."""

    host: str
    settings: Settings
    groups: Sequence[Request]
    open_loop: OpenLoopRun | None = None
    closed_loop: ClosedLoopRun | None = None
    started: bool = False
    interrupted: bool = False

    @property
    def servers(self) -> list[str]:
        return [server.strip() for server in self.host.split(",")]

    def connect(self) -> RankingClient:
        """Connect with one attempt for each call, since a load test counts refusals."""
        return RankingClient(self.servers, self.settings.model, self.settings.timeout_s, attempts=1)


class _Run:
    """The settings, the server and the report, which all runs share."""

    def __init__(self, course: Course) -> None:
        self._settings, self._host = course.settings, course.host
        self._server = Statistics(course.servers if course.settings.report else ())
        self._started = datetime.now(UTC)

    def _report(
        self, mode: str, points: Sequence[Point], result: str, exit_code: int, *, stopped: bool = False, **more: Any
    ) -> Report:
        return Report(
            mode=mode,
            started=self._started.isoformat(timespec="seconds"),
            host=self._host,
            settings=described(self._settings),
            surroundings={**surroundings(), **self._server.versions()},
            points=tuple(points),
            result=result,
            exit_code=exit_code,
            notes=notes(points, self._server.note, stopped),
            bottleneck=bottleneck(points),
            **more,
        )


class OpenLoopRun(_Run):
    """``say`` gets a line for each rate as soon as it is measured."""

    def __init__(self, course: Course, say: Callable[[str], None]) -> None:
        super().__init__(course)
        self._groups, self._say = course.groups, say
        self._loop = OpenLoop(self._settings.in_flight)
        self._points: list[Point] = []
        self._found: Found | None = None
        self._stopped = False
        self.ended = Event()
        self.rate = 0.0  # that is measured now

    def run(self, send: Send, heard: Heard) -> None:
        """Run to the end. ``heard`` gets each request that counts."""
        settings, self._send, self._heard = self._settings, send, heard
        self._say(plan_in_words(settings))
        try:
            if settings.plan:
                self._found = find_highest(self._holds, settings.plan)
            else:
                assert settings.rate is not None
                self._measure(settings.rate, settings.seconds, SINGLE)
        except StoppedError:
            self._stopped = not math.isinf(settings.seconds)  # else it is how the run was to end
        finally:
            self.ended.set()

    def stop(self) -> None:
        self._loop.stop()

    def report(self) -> Report:
        settings, found = self._settings, self._found
        if settings.plan:
            mode, (result, code) = "search", search_result(found, self._points, settings)
        else:
            mode, (result, code) = "open loop", rate_result(self._points, settings)
        rate, stopped = found.rate if found else None, self._stopped
        return self._report(mode, self._points, result, code, stopped=stopped, objective=settings.objective, found=rate)

    def _holds(self, rate: float, stage: str) -> bool:
        times = CONFIRMATION_TIMES if stage == CONFIRMATION else 1
        point = self._measure(rate, times * self._settings.seconds, stage)
        assert point.verdict is not None
        return point.verdict.holds

    def _measure(self, rate: float, seconds: float, stage: str) -> Point:
        settings, self.rate = self._settings, rate
        begin = time.perf_counter() + settings.warm_up
        seen: list[tuple[Watch, Mapping[str, Spent]]] = []
        window = gevent.spawn_later(settings.warm_up, lambda: seen.append((Watch(), self._server.look())))
        samples, cut_at = self._loop.run(self._schedule(rate, seconds), begin, self._send, self._heard)
        window.kill()
        generator, server = Generator(0.0, 0.0), tuple[ModelTimes, ...]()
        if seen:
            generator, server = seen[0][0].stop(), between(seen[0][1], self._server.look())
        measured = seconds if cut_at is None else max(0.0, cut_at)
        if cut_at is not None and not samples:
            raise StoppedError
        point = with_limits(summarise(samples, measured, generator, stage=stage, rate=rate), settings.in_flight)
        point = dataclasses.replace(point, server=server, interrupted=cut_at is not None and seconds < math.inf)
        if settings.objective:
            latencies = [sample.latency_ms for sample in samples if not sample.failure]
            point = dataclasses.replace(point, verdict=judge(settings.objective, latencies, point.failed))
        self._points.append(point)
        self._say(in_a_line(point))
        if self._loop.stopped:
            raise StoppedError
        return point

    def _schedule(self, rate: float, seconds: float) -> Iterator[tuple[float, Request]]:
        """Arrivals and requests of a rate; every rate has its own."""
        settings, seed = self._settings, self._settings.seed + len(self._points)
        times = arrivals(settings.arrivals, rate, settings.warm_up + seconds, seed)
        for due, request in zip(times, traffic(self._groups, settings.counts, seed), strict=False):
            yield due - settings.warm_up, request


class ClosedLoopRun(_Run):
    """Users who wait for their answers. ``heard`` is called with each request as it is answered."""

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        self._samples: list[Sample] = []
        self._users = 0
        self._begin, self._watch, self._before = time.perf_counter(), Watch(), self._server.look()

    def joined(self) -> None:
        """Count a user that began."""
        self._users += 1

    def heard(self, request: Request, sent: float, failure: str) -> None:
        """Note a request whose answer came now. ``sent`` is a time of time.perf_counter."""
        now, sent = time.perf_counter() - self._begin, sent - self._begin
        answer = 0 if failure else request.response_bytes
        documents = len(request.documents)
        self._samples.append(Sample(sent, sent, now, documents, request.request_bytes, answer, failure))

    def report(self) -> Report:
        seconds = max((sample.end for sample in self._samples), default=0.0)
        generator, server = self._watch.stop(), between(self._before, self._server.look())
        point = with_limits(summarise(self._samples, seconds, generator, stage=SINGLE, users=self._users), None)
        point = dataclasses.replace(point, server=server)
        return self._report("closed loop", (point,), *closed_result(point))
