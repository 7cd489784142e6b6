"""A rate in the course of time: a stall is a tooth here, and hardly more than a number in the percentiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest._samples import Percentiles, Sample

MOST_SLICES = 120
LEAST_S = 0.25


@dataclass(frozen=True)
class Slice:
    """What was due from ``begin`` (seconds) on, until the next slice's; ``answered_then`` came to its end in it,
    whenever it was due. Per second."""

    begin: float
    due: float
    answered_then: float
    failed: float
    latency_ms: Percentiles | None


def slices(samples: Sequence[Sample], seconds: float) -> tuple[Slice, ...]:
    """All of equal length; as many as a picture can show."""
    until = max([seconds, *(sample.end for sample in samples if not sample.failure)])
    if not until > 0:
        return ()
    length = max(LEAST_S, until / MOST_SLICES)
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
