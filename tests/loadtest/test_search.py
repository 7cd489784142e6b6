"""The search for the highest rate, on servers that are a line of arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._search import (
    BISECTION,
    CONFIRMATION,
    STEP,
    Found,
    Objective,
    Plan,
    find_highest,
    judge,
    nearest_rank,
)


def up_to(limit: float, asked: list[tuple[float, str]]) -> Callable[[float, str], bool]:
    def holds(rate: float, stage: str) -> bool:
        asked.append((rate, stage))
        return rate <= limit

    return holds


@pytest.mark.parametrize(
    ("limit", "plan", "steps", "bisections", "found"),
    [
        # 40 held and 80 did not; the middles are geometric: sqrt(40 * 80) = 56.6, then 47.6, then 43.6.
        (45, Plan(10, 1000, 2, 0.1, tries=1), (10, 20, 40, 80), (56.6, 47.6, 43.6), Found(43.6, bounded=False)),
        (9, Plan(10, 1000), (10, 10), (), Found(None, bounded=False)),
        (math.inf, Plan(10, 30), (10, 20, 30), (), Found(30, bounded=True)),
    ],
)
def test_steps_then_bisection_then_confirmation(
    limit: float, plan: Plan, steps: Sequence[float], bisections: Sequence[float], found: Found
) -> None:
    asked: list[tuple[float, str]] = []
    assert find_highest(up_to(limit, asked), plan) == found
    confirmations = [found.rate] if found.rate else []
    assert asked == [
        *((rate, STEP) for rate in steps),
        *((rate, BISECTION) for rate in bisections),
        *((rate, CONFIRMATION) for rate in confirmations),
    ]


def test_a_hiccup_does_not_end_the_search() -> None:
    asked: list[tuple[float, str]] = []
    real = up_to(45, asked)
    assert find_highest(lambda rate, stage: real(rate, stage) and len(asked) != 2, Plan(20, 40)) == Found(40, True)
    assert asked == [(20, STEP), (40, STEP), (40, STEP), (40, CONFIRMATION)]


def test_what_is_not_confirmed_gives_way_to_lower_rates() -> None:
    asked: list[float] = []

    def holds(rate: float, stage: str) -> bool:
        if stage == CONFIRMATION:
            asked.append(rate)
        return rate <= (90 if stage == CONFIRMATION else 100)

    # 100 / 1.05 = 95.2, and that / 1.1 = 86.5: further back each time.
    assert find_highest(holds, Plan(100, 100, tolerance=0.05)).rate is None
    assert asked == [100]
    asked.clear()
    assert find_highest(holds, Plan(50, 100, tolerance=0.05)) == Found(86.5, bounded=False)
    assert asked == [100, 95.2, 86.5]


def test_a_server_that_holds_once_and_never_again_is_not_found() -> None:
    def holds(rate: float, stage: str) -> bool:
        return stage != CONFIRMATION and rate < 500

    assert find_highest(holds, Plan(1, 1000)) == Found(None, bounded=False)


@given(limit=st.floats(1, 9000), factor=st.floats(1.1, 8), tolerance=st.floats(0.005, 0.5))
def test_the_result_is_within_the_tolerance_below_the_limit(limit: float, factor: float, tolerance: float) -> None:
    found = find_highest(lambda rate, _: rate <= limit, Plan(1, 10_000, factor, tolerance))
    assert found.rate is not None
    rounding = 1.01  # rates have three digits
    assert found.rate <= limit <= found.rate * (1 + tolerance) * rounding


def test_nearest_ranks() -> None:
    hundred = list(range(1, 101))
    assert [nearest_rank(hundred, share) for share in (0.5, 0.99, 0.999, 1.0)] == [50, 99, 100, 100]
    assert [nearest_rank([3.0], share) for share in (0.0, 0.5, 0.999)] == [3.0] * 3
    assert nearest_rank([1, 2, 3, 4], 0.5) == 2


@pytest.mark.parametrize(
    ("answered", "failed", "holds", "reason"),
    [
        ([5.0] * 99 + [500.0], 0, True, "p99 5.0 ms is within 10 ms"),  # the 99th of 100 is fast
        ([5.0] * 98 + [500.0] * 2, 0, False, "p99 500.0 ms is above 10 ms"),
        ([5.0] * 99, 1, True, "p99 5.0 ms"),  # a failure within the budget is the one slow request
        ([5.0] * 98 + [500.0], 1, False, "p99 500.0 ms"),  # and takes the place of a slow one
        ([5.0] * 980, 20, False, "20 of 1000 requests failed (2.00%, 1.00% may)"),
        ([10.0] * 100, 0, True, "p99 10.0 ms is within 10 ms"),
        ([], 0, False, "no request was due"),
        ([], 5, False, "5 of 5 requests failed"),
    ],
)
def test_an_objective_is_of_latency_and_failures_together(
    answered: list[float], failed: int, holds: bool, reason: str
) -> None:
    verdict = judge(Objective(p99_ms=10, error_budget=0.01), answered, failed)
    assert verdict.holds == holds and verdict.reason.startswith(reason)
