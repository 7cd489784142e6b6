"""Locust's users, who send the requests. locustfile.py initialises gevent in gRPC before the first of them."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import Any, cast

import gevent
from locust import User, constant, task
from locust.exception import StopUser

from client import RankingError
from loadtest._runs import Course
from loadtest._samples import Sample, kind_of
from loadtest._traffic import Request, traffic

HOST = "localhost:8001"


class _CourseUser(User):
    abstract = True
    host = HOST

    def on_start(self) -> None:
        self.course = cast(Course, cast(Any, self.environment).course)
        self.client = self.course.connect()
        with suppress(RankingError):  # the first request reports it too
            self.client.document_limit()

    def on_stop(self) -> None:
        self.client.close()


class RankingUser(_CourseUser):
    """Sends the next request when the last one is answered."""

    wait_time = constant(0)
    numbers = itertools.count()

    def on_start(self) -> None:
        super().on_start()
        settings = self.course.settings
        self.traffic = traffic(self.course.groups, settings.counts, settings.seed + next(self.numbers))
        if self.course.closed_loop:
            self.course.closed_loop.joined()

    @task
    def rank(self) -> None:
        request = next(self.traffic)
        failure: RankingError | None = None
        sent = time.perf_counter()
        try:
            self.client.score_documents(request.query, request.documents)
        except RankingError as error:
            failure = error
        took_ms = (time.perf_counter() - sent) * 1000
        if self.course.closed_loop:
            self.course.closed_loop.heard(request, sent, kind_of(failure))
        _tell_locust(self.environment, "rank", took_ms, 0 if failure else request.response_bytes, failure)


class OpenLoopUser(_CourseUser):
    """Stands for all callers of an open loop. Replaces RankingUser where a rate or an objective is given."""

    abstract = True

    @task
    def drive(self) -> None:
        assert self.course.open_loop
        try:
            self.course.open_loop.run(self.send, self.heard)
        finally:
            gevent.spawn(self.environment.runner.quit)
        raise StopUser

    def send(self, request: Request) -> None:
        self.client.score_documents(request.query, request.documents)

    def heard(self, sample: Sample, failure: RankingError | None) -> None:
        assert self.course.open_loop
        took_ms = None if sample.dropped else sample.latency_ms
        name = f"rank at {self.course.open_loop.rate:g}/s"
        _tell_locust(self.environment, name, took_ms, sample.response_bytes, failure)


def _tell_locust(
    environment: Any, name: str, took_ms: float | None, response_bytes: int, failure: RankingError | None
) -> None:
    environment.events.request.fire(
        request_type="gRPC",
        name=name,
        response_time=took_ms,
        response_length=response_bytes,
        context={},
        exception=failure and f"{type(failure).__name__}: {kind_of(failure)}",
    )
