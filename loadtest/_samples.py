"""One request as it was sent and answered, percentiles of many, and slices of time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest._search import nearest_rank

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
MOST_SLICES = 120  # in a picture
LEAST_SLICE_S = 0.25
DECIMAL = re.compile(r"\d+\.\d+(?= m?s\b)")


def kind_of(failure: object) -> str:
    """The words of a failure, alike for all that differ in a time only; "" for None."""
    return DECIMAL.sub("…", str(failure or ""))


class Sample(NamedTuple):
    """One request. Times are seconds from the beginning of the measurement."""

    due: float
    sent: float
    end: float
    documents: int
    request_bytes: int
    response_bytes: int
    failure: str = ""  # "" for an answer
    dropped: bool = False  # never sent

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.end - self.due)


@dataclass(frozen=True)
class Percentiles:
    """Percentiles in milliseconds. They are nearest ranks, therefore each is a time that was measured."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles | None:
        """The percentiles of some times; None if there are none."""
        if not milliseconds:
            return None
        ascending = sorted(milliseconds)
        ranks = {name: nearest_rank(ascending, share) for name, share in SHARES.items()}
        return cls(mean=sum(ascending) / len(ascending), max=ascending[-1], **ranks)


@dataclass(frozen=True)
class Slice:
    """Requests a second in a slice of the time. A stall shows here; in the percentiles of a run it hardly does."""

    begin: float  # seconds from the beginning of the run
    due: float
    answered_then: float  # answered in this slice, whenever they were due
    failed: float  # of those due in this slice
    latency_ms: Percentiles | None  # of those due in this slice


def slices(samples: Sequence[Sample], seconds: float) -> tuple[Slice, ...]:
    """Slices of equal length, as many as a picture can show."""
    until = max([seconds, *(sample.end for sample in samples if not sample.failure)])
    if not until > 0:
        return ()
    length = max(LEAST_SLICE_S, until / MOST_SLICES)
    due: dict[int, list[Sample]] = defaultdict(list)
    ended: dict[int, int] = defaultdict(int)
    for sample in samples:
        due[int(sample.due / length)].append(sample)
        ended[int(sample.end / length)] += not sample.failure
    return tuple(
        Slice(
            begin=number * length,
            due=len(due[number]) / length,
            answered_then=ended[number] / length,
            failed=sum(1 for sample in due[number] if sample.failure) / length,
            latency_ms=Percentiles.of([sample.latency_ms for sample in due[number] if not sample.failure]),
        )
        for number in range(int(until / length) + 1)
    )
