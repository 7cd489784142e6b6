"""What a run leaves: a point for each rate (or number of users), all of them in a report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest._samples import Percentiles, Sample
from loadtest._search import Objective, Verdict
from loadtest._timeline import Slice, slices

SINGLE = "single"  # the stage of a run that measures once
BOUNDS_MS = tuple(digit * 10.0**power for power in range(5) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Generator:
    """The load generator itself. Shares of one core: of its only thread that runs Python, and of the whole process.
    ``limits`` says in words where it was the bottleneck; empty where it was not."""

    thread_cpu: float
    process_cpu: float
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelTimes:
    """Means over the requests of one model that Triton answered in the time, in milliseconds each."""

    model: str
    requests: int
    queue_ms: float
    compute_ms: float
    requests_per_batch: float


@dataclass(frozen=True)
class Point:
    """One rate (open loop) or number of users (closed loop), measured for ``seconds``.

    ``offered`` and ``achieved`` are requests a second: due in the time, and answered over the time until the last
    answer. ``latency_ms`` counts from when a request was due, ``service_ms`` from when it was sent, ``lag_ms`` is
    what lies between; failed requests are in none of them. ``slower_than_ms``: (latency, how many took longer).
    """

    stage: str
    rate: float | None
    users: int | None
    seconds: float
    offered: float
    achieved: float
    documents_per_second: float
    requests: int
    answered: int
    failed: int
    dropped: int
    request_bytes: float
    response_bytes: float
    latency_ms: Percentiles | None
    service_ms: Percentiles | None
    lag_ms: Percentiles | None
    failures: Mapping[str, int]
    generator: Generator
    server: tuple[ModelTimes, ...] = ()
    verdict: Verdict | None = None
    interrupted: bool = False
    timeline: tuple[Slice, ...] = ()
    slower_than_ms: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class Report:
    """All of a run. ``found`` is the highest rate that held the objective (search only), ``result`` a line of words,
    ``notes`` what a reader must know besides, ``bottleneck`` where the load generator was it (empty: nowhere)."""

    mode: str
    started: str
    host: str
    settings: Mapping[str, Any]
    points: tuple[Point, ...]
    result: str
    objective: Objective | None = None
    found: float | None = None
    exit_code: int = 0
    notes: tuple[str, ...] = ()
    bottleneck: str = ""


def summarise(
    samples: Sequence[Sample], seconds: float, generator: Generator, *, stage: str,
    rate: float | None = None, users: int | None = None,
) -> Point:  # fmt: skip
    """``seconds``: how long requests were due. Closed loops are summarised the same: due is when they were sent."""
    answered = [sample for sample in samples if not sample.failure]
    dropped = sum(sample.dropped for sample in samples)
    until = max([seconds, *(sample.end for sample in answered)])
    per_second = 1 / until if until else 0.0
    return Point(
        stage=stage,
        rate=rate,
        users=users,
        seconds=seconds,
        offered=len(samples) / seconds if seconds else 0.0,
        achieved=len(answered) * per_second,
        documents_per_second=sum(sample.documents for sample in answered) * per_second,
        requests=len(samples),
        answered=len(answered),
        failed=len(samples) - len(answered),
        dropped=dropped,
        request_bytes=_mean([sample.request_bytes for sample in samples]),
        response_bytes=_mean([sample.response_bytes for sample in answered]),
        latency_ms=Percentiles.of([sample.latency_ms for sample in answered]),
        service_ms=Percentiles.of([1000 * (sample.end - sample.sent) for sample in answered]),
        lag_ms=Percentiles.of([1000 * (sample.sent - sample.due) for sample in samples if not sample.dropped]),
        failures=dict(Counter(sample.failure for sample in samples if sample.failure).most_common(10)),
        generator=generator,
        slower_than_ms=tuple((bound, sum(sample.latency_ms > bound for sample in answered)) for bound in BOUNDS_MS),
        timeline=slices(samples, seconds) if stage == SINGLE else (),
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def as_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)
