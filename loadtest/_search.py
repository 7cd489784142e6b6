"""Whether an objective holds, and the search for the highest rate at which it does. The caller measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_FACTOR = 1000.0
STEP, BISECTION, CONFIRMATION = "step", "bisection", "confirmation"


@dataclass(frozen=True)
class Objective:
    """At most ``error_budget`` of the requests fail, and 99% are answered within ``p99_ms`` of when they were due."""

    p99_ms: float
    error_budget: float


@dataclass(frozen=True)
class Verdict:
    """Whether an objective holds; ``reason`` says why not, or by how much."""

    holds: bool
    reason: str


def judge(objective: Objective, answered_ms: Sequence[float], failed: int) -> Verdict:
    """Judge by the latencies of the answered requests. A failed request counts as one that took for ever."""
    requests = len(answered_ms) + failed
    if not requests:
        return Verdict(False, "no request was due in this time")
    if failed > objective.error_budget * requests:
        return Verdict(
            False, f"{failed} of {requests} requests failed ({failed / requests:.2%}, {objective.error_budget:.2%} may)"
        )
    p99 = nearest_rank(sorted(answered_ms) + [math.inf] * failed, 0.99)
    if p99 > objective.p99_ms:
        return Verdict(False, f"p99 {p99:.1f} ms is above {objective.p99_ms:g} ms")
    return Verdict(True, f"p99 {p99:.1f} ms is within {objective.p99_ms:g} ms")


def nearest_rank(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending) - 1e-9) - 1)]


@dataclass(frozen=True)
class Plan:
    """The plan of a search.

    Rates rise from ``lowest`` (requests/s) by ``factor`` up to ``highest``. Bisection follows, until the highest rate
    that held and the lowest that did not are within ``tolerance`` of each other. A rate has failed after ``tries``
    measurements, so that one hiccup of the machine does not end the search.
    """

    lowest: float
    highest: float
    factor: float = 2.0
    tolerance: float = 0.05
    tries: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.highest < math.inf:
            raise ValueError(f"rates from {self.lowest:g} to {self.highest:g}: the lowest first, and above 0")
        if not 1 < self.factor <= MOST_FACTOR:
            raise ValueError(f"a step factor of {self.factor:g}: it must be above 1 and at most {MOST_FACTOR:g}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"a tolerance of {self.tolerance:g}: it must be between 0 and 1")
        if self.tries < 1:
            raise ValueError(f"{self.tries} tries: at least 1")


class Found(NamedTuple):
    """The result of a search."""

    rate: float | None  # the highest that held, confirmed; None if not even the lowest held
    bounded: bool  # no rate failed up to the plan's highest


Holds = Callable[[float, str], bool]  # rate and stage -> whether the objective holds, by measuring


def find_highest(measure: Holds, plan: Plan) -> Found:
    def holds(rate: float, stage: str) -> bool:
        return any(measure(rate, stage) for _ in range(1 if stage == CONFIRMATION else plan.tries))

    low, high = _climb(holds, plan)
    if low is None:
        return Found(None, False)
    if high is None:
        confirmed = _confirm(holds, low, plan)
        return Found(confirmed, confirmed == low)
    while high > low * (1 + plan.tolerance):
        middle = _round(math.sqrt(low * high))
        if not low < middle < high:
            break
        if holds(middle, BISECTION):
            low = middle
        else:
            high = middle
    return Found(_confirm(holds, low, plan), False)


def _climb(holds: Holds, plan: Plan) -> tuple[float | None, float | None]:
    """Climb to the first rate that does not hold. Returns the last that held, and that one."""
    held, rate = None, plan.lowest
    while holds(rate, STEP):
        held = rate
        if rate >= plan.highest:
            return held, None
        rate = min(rate * plan.factor, plan.highest)
    return held, rate


def _confirm(holds: Holds, rate: float, plan: Plan) -> float | None:
    """Measure again, since a single step may have been lucky; go to lower rates, further each time, until one holds."""
    back = plan.tolerance
    while not holds(rate, CONFIRMATION):
        if rate <= plan.lowest:
            return None
        rate = max(plan.lowest, _round(rate / (1 + back)))
        back *= 2
    return rate


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
