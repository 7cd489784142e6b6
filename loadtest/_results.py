"""Results in words: a line for each rate, the result of a run, and notes for its reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest._flags import Settings
from loadtest._records import SINGLE, Point
from loadtest._search import CONFIRMATION, Found, Objective

HELD, FAILED, STOPPED = 0, 1, 130
FEW = 1000  # of fewer requests, fewer than ten decide the p99
OWN_BOTTLENECK = "the load generator was itself the bottleneck"


def load(point: Point) -> str:
    return f"{point.rate:g}/s" if point.rate is not None else f"{point.users} users"


def plan_in_words(settings: Settings) -> str:
    """The line that announces an open loop."""
    load = f"{settings.rate:g} requests/s" if settings.plan is None else f"from {settings.plan.lowest:g} requests/s on"
    seconds = f"{settings.seconds:g} s" if settings.seconds < math.inf else "until Ctrl-C"
    each = "" if settings.plan is None else " at each rate"
    return f"open loop: {load}, {settings.arrivals} arrivals, {seconds}{each} after {settings.warm_up:g} s of warm-up"


def in_a_line(point: Point) -> str:
    """The lines that the terminal shows for a rate."""
    parts = [f"{point.stage} {load(point)}: offered {point.offered:.1f}/s, achieved {point.achieved:.1f}/s"]
    parts.append(f"{point.documents_per_second:.0f} documents/s")
    if point.latency_ms and point.service_ms:
        latency, service = point.latency_ms, point.service_ms
        parts.append(f"p50 {latency.p50:.1f}, p99 {latency.p99:.1f} ms from when due ({service.p99:.1f} from the send)")
    parts.append(f"{point.failed} of {point.requests} failed")
    if point.verdict:
        parts.append(f"{'holds' if point.verdict.holds else 'does not hold'}: {point.verdict.reason}")
    if point.interrupted:
        parts.append(f"stopped after {point.seconds:.1f} s")
    lines = [", ".join(parts), *(f"  {OWN_BOTTLENECK}: {limit}" for limit in point.generator.limits)]
    return "\n".join(lines)


def in_words(objective: Objective) -> str:
    return f"p99 within {objective.p99_ms:g} ms with at most {objective.error_budget:.2%} failed"


def search_result(found: Found | None, points: Sequence[Point], settings: Settings) -> tuple[str, int]:
    """The result of a search, and the exit code."""
    assert settings.objective is not None
    assert settings.plan is not None
    goal = in_words(settings.objective)
    if found is None:
        held = [point.rate for point in points if point.rate and point.verdict and point.verdict.holds]
        best = f"the highest that held is {max(held):g} requests/s, not confirmed" if held else "none held yet"
        return f"the search for {goal} was stopped: {best}", STOPPED
    if found.rate is None:
        last = points[-1].verdict
        return f"not even {settings.plan.lowest:g} requests/s hold {goal}: {last.reason if last else ''}", FAILED
    beyond = ", and no rate up to --highest-rate failed" if found.bounded else ""
    return f"highest rate that holds {goal}: {found.rate:g} requests/s, confirmed{beyond}", HELD


def rate_result(points: Sequence[Point], settings: Settings) -> tuple[str, int]:
    """The result of one rate, and the exit code."""
    if not points or not points[0].requests:
        return "no request was due before the run was stopped", FAILED
    (point,) = points
    if settings.objective and point.verdict:
        words = "hold" if point.verdict.holds else "do not hold"
        line = f"{point.rate:g} requests/s {words} {in_words(settings.objective)}: {point.verdict.reason}"
        return line, HELD if point.verdict.holds else FAILED
    return _latency(f"open loop at {point.rate:g} requests/s", point), FAILED if point.failed else HELD


def closed_result(point: Point) -> tuple[str, int]:
    """The result of users who wait, and the exit code."""
    code = HELD if point.answered and not point.failed else FAILED
    return _latency(f"closed loop of {point.users} users", point), code


def _latency(what: str, point: Point) -> str:
    times = (
        f"p50 {point.latency_ms.p50:.1f} ms, p99 {point.latency_ms.p99:.1f} ms" if point.latency_ms else "no answers"
    )
    return f"{what}: {point.achieved:.1f} requests/s answered, {times}, {point.failed} of {point.requests} failed"


def bottleneck(points: Sequence[Point]) -> str:
    """Say where the load generator was the bottleneck; "" if nowhere."""
    limited = dict.fromkeys(load(point) for point in points if point.generator.limits)
    return f"At {', '.join(limited)} {OWN_BOTTLENECK}: the server may do better than this shows" if limited else ""


def notes(points: Sequence[Point], about_server: str, stopped: bool) -> tuple[str, ...]:
    found = []
    decisive = [point for point in points if point.stage in (CONFIRMATION, SINGLE)]
    if decisive and 0 < decisive[-1].answered < FEW:
        count, slowest = decisive[-1].answered, decisive[-1].answered // 100 + 1
        found.append(f"The last p99 is of {count} answers, so its {slowest} slowest decide it: a longer -t tells more.")
    if stopped:
        found.append("The run was stopped before its end; this is what there was.")
    if about_server:
        found.append(about_server[:1].upper() + about_server[1:])
    return tuple(found)


def described(settings: Settings) -> Mapping[str, Any]:
    """The settings of the run for the readers of the report."""
    shown: dict[str, Any] = {"queries": str(settings.queries), "documents": settings.counts.text, "seed": settings.seed}
    shown |= {"model": settings.model, "timeout (s)": settings.timeout_s}
    if settings.is_open:
        shown |= {"arrivals": settings.arrivals, "in flight, at most": settings.in_flight}
        shown |= {"warm-up (s)": settings.warm_up}
    return shown
