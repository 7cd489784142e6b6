"""The open loop on a server of this process: when requests are sent, and from when their latency counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest
from gevent.event import Event

from client import Document, RankingError
from loadtest import _open_loop
from loadtest._generator import with_limits
from loadtest._open_loop import BEYOND_BOUND, UNANSWERED, OpenLoop, Outcome
from loadtest._records import SINGLE, Generator, Point, summarise
from loadtest._samples import Percentiles, Sample
from loadtest._traffic import Request
from tests.support.waiting import PATIENCE_S

REQUEST = Request("query", (Document(title="title", summary="summary"),) * 2)
IDLE = Generator(0.1, 0.1)


def run(dues: list[float], send: Callable[[Request], None], loop: OpenLoop | None = None) -> Outcome:
    schedule = [(due, REQUEST) for due in dues]
    begin = time.perf_counter() - min([0.0, *dues])
    return (loop or OpenLoop(100)).run(schedule, begin, send, lambda *_: None)


def every(seconds: float, count: int) -> list[float]:
    return [number * seconds for number in range(count)]


def test_requests_are_sent_when_due_whether_or_not_others_were_answered() -> None:
    sent, all_sent = list[Request](), Event()

    def send(request: Request) -> None:
        sent.append(request)
        if len(sent) == 20:
            all_sent.set()
        assert all_sent.wait(PATIENCE_S), "others wait for answers"

    samples, cut_at = run(every(0.01, 20), send)
    assert cut_at is None
    assert len(samples) == 20
    assert all(sample.end >= sample.sent >= sample.due for sample in samples)


def test_latency_counts_from_when_a_request_was_due() -> None:
    """The server stands still for 0.4 s as the loop begins, and with it everything here."""
    stalled: list[bool] = []

    def send(_: Request) -> None:
        if not stalled:
            stalled.append(True)
            time.sleep(0.4)  # not gevent's: nothing is sent meanwhile

    samples, _ = run(every(0.01, 60), send)
    point = summarise(samples, 0.6, IDLE, stage=SINGLE, rate=100)
    late = [sample for sample in samples if sample.latency_ms > 200]
    assert len(late) >= 20  # all of the first 0.2 s, and others on a slow machine
    assert point.service_ms is not None
    assert point.latency_ms is not None
    assert point.latency_ms.p90 > 200 > point.service_ms.p90
    assert [sample.due for sample in sorted(samples)] == every(0.01, 60)  # none was left out


def test_what_is_due_before_the_beginning_is_sent_and_not_counted() -> None:
    sent: list[Request] = []
    samples, _ = run([-0.05, -0.03, -0.01, 0.0, 0.02], sent.append)
    assert len(sent) == 5
    assert [sample.due for sample in samples] == [0.0, 0.02]


def test_beyond_the_bound_nothing_is_sent_and_that_is_a_failure() -> None:
    """The server answers nobody before all requests were due."""
    sent, all_due = list[Request](), Event()

    def send(request: Request) -> None:
        sent.append(request)
        all_due.wait(PATIENCE_S)

    def schedule() -> Iterator[tuple[float, Request]]:
        yield from ((due, REQUEST) for due in every(0.005, 30))
        all_due.set()

    samples, _ = OpenLoop(10).run(schedule(), time.perf_counter(), send, lambda *_: None)
    point = with_limits(summarise(samples, 0.15, IDLE, stage=SINGLE, rate=200), bound=10)
    assert len(sent) == point.answered == 10
    assert point.dropped == point.failed == 20
    assert point.failures == {BEYOND_BOUND: 20}
    assert any("20 requests were not sent, as 10 were in flight" in limit for limit in point.generator.limits)


def test_failures_are_counted_and_in_no_percentile() -> None:
    answers = iter([None, RankingError("down"), None, RankingError("down")])

    def send(_: Request) -> None:
        if error := next(answers):
            gevent.sleep(0.3)
            raise error

    heard: list[tuple[str, str]] = []
    outcome = OpenLoop(10).run(
        [(due, REQUEST) for due in every(0.01, 4)],
        time.perf_counter(),
        send,
        lambda sample, failure: heard.append((sample.failure, str(failure or ""))),
    )
    point = summarise(outcome.samples, 0.04, IDLE, stage=SINGLE, rate=100)
    assert (point.requests, point.answered, point.failed) == (4, 2, 2)
    assert point.failures == {"down": 2}
    assert sorted(heard) == [("", ""), ("", ""), ("down", "down"), ("down", "down")]
    assert point.response_bytes == 10


def test_a_stopped_run_keeps_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_open_loop, "STOPPED_PATIENCE_S", 0.5)
    loop = OpenLoop(100)

    def send(request: Request) -> None:
        if len(answered) >= 5:
            loop.stop()
            gevent.sleep(PATIENCE_S)
        answered.append(request)

    answered: list[Request] = []
    samples, cut_at = run(every(0.02, 30_000), send, loop=loop)
    assert cut_at is not None
    assert [sample.failure for sample in samples[:5]] == [""] * 5
    assert {sample.failure for sample in samples[5:]} == {UNANSWERED}


def sample(due: float, sent: float, end: float, failure: str = "") -> Sample:
    return Sample(due, sent, end, documents=10, request_bytes=100, response_bytes=50, failure=failure)


def point_of(samples: list[Sample], seconds: float, generator: Generator = IDLE) -> Point:
    return with_limits(summarise(samples, seconds, generator, stage=SINGLE, rate=1.0), bound=7)


def test_rates_by_hand() -> None:
    """Four due in 2 s, three answered by 2.5 s."""
    samples = [sample(0, 0, 0.5), sample(0.5, 0.6, 1), sample(1, 1, 2.5), sample(1.5, 1.5, 9, failure="late")]
    point = point_of(samples, 2)
    assert (point.offered, point.achieved, point.documents_per_second) == pytest.approx((2, 1.2, 12))
    assert point.latency_ms is not None
    assert (point.latency_ms.p50, point.latency_ms.max) == (500, 1500)
    assert point.service_ms is not None
    assert point.service_ms.p50 == pytest.approx(500)
    assert point.service_ms.mean == pytest.approx((500 + 400 + 1500) / 3)
    assert point.lag_ms is not None
    assert point.lag_ms.max == pytest.approx(100)
    assert [each.failed > 0 for each in point.timeline].count(True) == 1
    assert sum(each.due for each in point.timeline) * 0.25 == 4
    assert dict(point.slower_than_ms)[200] == 3
    assert dict(point.slower_than_ms)[500] == 1


def test_percentiles_are_times_that_were_measured() -> None:
    found = Percentiles.of([float(number) for number in range(1, 1001)])
    assert found == Percentiles(mean=500.5, p50=500, p90=900, p95=950, p99=990, p999=999, max=1000)
    assert Percentiles.of([]) is None


@pytest.mark.parametrize(
    ("one", "generator", "limits"),
    [
        (sample(0, 0.001, 0.2), IDLE, ()),
        (sample(0, 0.004, 0.01), IDLE, ()),  # as good as timers are
        (sample(0, 0.001, 0.2), Generator(0.95, 1.1), ("it used 95% of a core in its one thread of Python",)),
        (sample(0, 0.05, 0.2), IDLE, ("requests left late by 50.0 ms at p99, of 200.0 ms of latency",)),
    ],
)
def test_a_generator_that_is_the_bottleneck_says_so(one: Sample, generator: Generator, limits: Sequence[str]) -> None:
    found = point_of([one] * 100, 10, generator).generator.limits
    assert [limit[: len(words)] for limit, words in zip(found, limits, strict=True)] == [*limits]
