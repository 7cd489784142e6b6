"""The course of a run: one rate, a search for the highest, or users in a closed loop; each leaves a report."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import gevent
from gevent.event import Event

from loadtest._flags import Settings
from loadtest._generator import Watch, with_limits
from loadtest._open_loop import OpenLoop
from loadtest._records import Generator, Point, Report, Sample, summarise
from loadtest._results import closed_result, described, notes, rate_result, search_result
from loadtest._schedule import arrivals
from loadtest._search import CONFIRMATION, Found, find_highest, judge
from loadtest._traffic import Request, Traffic
from loadtest._triton_metrics import Counters, MetricsError, between, read_counters

CONFIRMATION_TIMES = 3  # as long as a step
SINGLE = "single"


class StoppedError(Exception):
    """The run was stopped by its user in the middle."""


class Server:
    """Triton's counters, as long as there are any: the first failure is noted and ends the asking."""

    def __init__(self, url: str | None) -> None:
        self._url, self.note = url, ""

    def look(self) -> Counters:
        if not self._url or self.note:
            return {}
        try:
            return read_counters(self._url)
        except MetricsError as error:
            self.note = str(error)
            return {}


class OpenLoopRun:
    """``say`` gets a line for each rate as soon as it is measured."""

    def __init__(
        self, settings: Settings, host: str, groups: Sequence[Request], loop: OpenLoop, server: Server,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._settings, self._host, self._groups, self._loop = settings, host, groups, loop
        self._server, self._say = server, say
        self._points: list[Point] = []
        self._found: Found | None = None
        self._started = datetime.now(UTC)
        self.ended = Event()
        self.rate = 0.0  # that is measured now

    def run(self) -> None:
        settings = self._settings
        try:
            if settings.plan:
                self._found = find_highest(self._holds, settings.plan)
            else:
                assert settings.rate is not None
                self._measure(settings.rate, settings.seconds, SINGLE)
        except StoppedError:
            pass  # the report says so
        finally:
            self.ended.set()

    def stop(self) -> None:
        self._loop.stop()

    def report(self) -> Report:
        settings, stopped = self._settings, self._loop.stopped
        if settings.plan:
            result, code = search_result(self._found, self._points, settings)
        else:
            result, code = rate_result(self._points, settings)
        return Report(
            mode="search" if settings.plan else "open loop",
            started=self._started.isoformat(timespec="seconds"),
            host=self._host,
            settings=described(settings),
            points=tuple(self._points),
            result=result,
            objective=settings.objective,
            found=self._found.rate if self._found else None,
            exit_code=code,
            notes=notes(self._points, self._server.note, stopped),
        )

    def _holds(self, rate: float, stage: str) -> bool:
        times = CONFIRMATION_TIMES if stage == CONFIRMATION else 1
        point = self._measure(rate, times * self._settings.seconds, stage)
        assert point.verdict is not None
        return point.verdict.holds

    def _measure(self, rate: float, seconds: float, stage: str) -> Point:
        settings, self.rate = self._settings, rate
        begin = time.perf_counter() + settings.warm_up
        seen: list[tuple[Watch, Counters]] = []
        window = gevent.spawn_later(settings.warm_up, lambda: seen.append((Watch(), self._server.look())))
        samples = self._loop.run(self._schedule(rate, seconds), begin)
        ended = time.perf_counter() - begin
        window.kill()
        generator, server = Generator(0.0, 0.0), ()
        if seen:
            generator, server = seen[0][0].stop(), between(seen[0][1], self._server.look())
        measured = max(0.0, min(seconds, ended))
        point = with_limits(summarise(samples, measured, generator, stage=stage, rate=rate), settings.in_flight)
        point = dataclasses.replace(point, server=server, interrupted=self._loop.stopped and ended < seconds)
        self._add(point, samples)
        if self._loop.stopped and not math.isinf(seconds):
            raise StoppedError
        return self._points[-1]

    def _add(self, point: Point, samples: Sequence[Sample]) -> None:
        if self._settings.objective:
            latencies = [1000 * (sample.end - sample.due) for sample in samples if not sample.failure]
            point = dataclasses.replace(point, verdict=judge(self._settings.objective, latencies, point.failed))
        self._points.append(point)
        self._say(line(point))

    def _schedule(self, rate: float, seconds: float) -> Iterator[tuple[float, Request]]:
        """Every rate gets arrivals and requests of its own."""
        settings, seed = self._settings, self._settings.seed + len(self._points)
        times = arrivals(settings.arrivals, rate, settings.warm_up + seconds, seed)
        for due, request in zip(times, Traffic(self._groups, settings.counts, seed), strict=False):
            yield due - settings.warm_up, request
