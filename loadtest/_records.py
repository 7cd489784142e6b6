"""The report of a run, with a point for each rate or number of users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest._samples import Percentiles, Sample, Slice, slices
from loadtest._search import Objective, Verdict

SINGLE = "single"  # the stage of a run that measures once
BOUNDS_MS = tuple(digit * 10.0**power for power in range(5) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Generator:
    """The load generator itself."""

    thread_cpu: float  # share of one core that its only thread of Python used
    process_cpu: float  # the same of the whole process
    limits: tuple[str, ...] = ()  # where it was the bottleneck, in words


@dataclass(frozen=True)
class ModelTimes:
    """Means over the requests of one model that Triton answered during a point."""

    model: str
    requests: int
    queue_ms: float
    compute_ms: float
    requests_per_batch: float


@dataclass(frozen=True)
class Point:
    """One rate (open loop) or number of users (closed loop), measured for ``seconds``.

    ``offered`` and ``achieved`` are requests a second: those due in the time, and those answered over the time until
    the last answer. ``latency_ms`` counts from when a request was due, ``service_ms`` from when it was sent, and
    ``lag_ms`` is the time between; failed requests are in none of them. ``slower_than_ms`` has pairs of a latency and
    the number of requests that took longer.
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
    """The whole of a run.

    ``surroundings`` are machine and versions.
    ``found`` is the highest rate that held the objective (search only). ``result`` is one line. ``notes`` are what a
    reader must know besides. ``bottleneck`` says where the load generator was the bottleneck, "" if nowhere.
    """

    mode: str
    started: str
    host: str
    settings: Mapping[str, Any]
    surroundings: Mapping[str, str]
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
    """Summarise requests that were due during ``seconds``. In a closed loop a request is due when it is sent."""
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
