"""One request as it was sent and answered, and percentiles of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest._search import nearest_rank


class Sample(NamedTuple):
    """One request. Times are seconds from the beginning of what is measured: when it was due, was sent, was done.
    ``failure`` is "" for an answer; what was ``dropped`` was never sent."""

    due: float
    sent: float
    end: float
    documents: int
    request_bytes: int
    response_bytes: int
    failure: str = ""
    dropped: bool = False

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.end - self.due)


@dataclass(frozen=True)
class Percentiles:
    """In milliseconds; percentiles are nearest ranks, so each is a time that was measured."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles | None:
        """None if there is nothing."""
        if not milliseconds:
            return None
        ascending = sorted(milliseconds)
        ranks = {name: nearest_rank(ascending, share) for name, share in SHARES.items()}
        return cls(mean=sum(ascending) / len(ascending), max=ascending[-1], **ranks)


SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
