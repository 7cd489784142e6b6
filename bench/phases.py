"""The phases of a load as its callers felt them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table

from bench.report import table_of
from loadtest._samples import Percentiles

BACK_S, TIMES, MORE_MS = 5.0, 2.0, 50.0
STEADY, KILLED, SLOW, REPLACED = "steady", "one killed", "one slowed", "all replaced"


class Asked(NamedTuple):
    """A request: the phase in which it was due, seconds from its beginning, milliseconds, and what failed."""

    phase: str
    due: float
    took_ms: float
    failure: str = ""


@dataclass(frozen=True)
class Felt:
    """A phase as its callers felt it; ``later_ms`` is the p99 from BACK_S after its beginning on, or that of all."""

    phase: str
    requests: int
    failed: int
    latency: Percentiles
    worst_second_ms: float
    later_ms: float
    limit_ms: float

    def good(self) -> bool:
        return not self.failed and (self.phase == REPLACED or self.later_ms <= self.limit_ms)


def report(asked: Sequence[Asked]) -> list[Felt]:
    phases = {name: [one for one in asked if one.phase == name] for name in (STEADY, KILLED, SLOW, REPLACED)}
    steady_ms = _percentiles(phases[STEADY]).p99
    limit_ms = max(TIMES * steady_ms, steady_ms + MORE_MS)
    return [_felt(name, each, limit_ms) for name, each in phases.items()]


def _felt(phase: str, asked: Sequence[Asked], limit_ms: float) -> Felt:
    """Seconds are those in which requests were due."""
    seconds = [[one for one in asked if int(one.due) == second] for second in {int(one.due) for one in asked}]
    later = [one for one in asked if one.due >= BACK_S]
    return Felt(
        phase=phase,
        requests=len(asked),
        failed=sum(bool(one.failure) for one in asked),
        latency=_percentiles(asked),
        worst_second_ms=max(_percentiles(second).p99 for second in seconds),
        later_ms=_percentiles(later or asked).p99,
        limit_ms=limit_ms,
    )


def _percentiles(asked: Sequence[Asked]) -> Percentiles:
    found = Percentiles.of([one.took_ms for one in asked])
    assert found
    return found


def table(title: str, phases: Sequence[Felt]) -> Table:
    later = f"p99 ms from {BACK_S:g} s on"
    headings = ("phase", "requests", "failed", "p50 ms", "p99 ms", "worst second's p99 ms", later)
    shown = table_of(title, headings, left=headings[:1])
    for one in phases:
        times = [f"{value:.0f}" for value in (one.latency.p50, one.latency.p99, one.worst_second_ms, one.later_ms)]
        shown.add_row(one.phase, str(one.requests), str(one.failed), *times)
    return shown
