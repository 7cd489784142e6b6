"""The pictures of a report, as SVG texts for its page. Needs matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from loadtest._records import ModelTimes, Point, Report
from loadtest._samples import Percentiles
from loadtest._search import Objective

PERCENTILES = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
BLUE, ORANGE, GREEN, RED = "#3f83d6", "#d9730d", "#2e9e4f", "#d0463c"  # seen on white and on black
INK = "#010203"  # of text and axes, which take the page's colour
STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "legend.fontsize": 8}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "legend.framealpha": 0, "savefig.transparent": True}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
Line = tuple[str, Sequence[float | None], dict[str, Any]]  # label, values at the points, matplotlib's style


def draw(report: Report) -> list[tuple[str, str]]:
    """Title and SVG of each picture: by rate, or over time where there is only one rate."""
    if len(report.points) == 1:
        (point,) = report.points
        since = "sent" if point.users is not None else "due"
        return [
            (f"Latency by when requests were {since}", _svg(lambda axes: _latency_in_time(axes, point, report))),
            ("Requests over time", _svg(lambda axes: _requests_in_time(axes, point))),
        ]
    points = sorted({_load(point): point for point in report.points}.values(), key=_load)  # of each rate the last time
    drawn: dict[str, Callable[..., None]] = {
        "Latency from when requests were due": _latency,
        "Throughput: offered and achieved": _throughput,
        **({"Requests that failed": _errors} if any(point.failed for point in points) else {}),
        "Inside the server: queue and compute time": _server,
        "The load generator: lag of sends and CPU": _generator,
    }
    return [(title, _svg(partial(paint, points=points, report=report))) for title, paint in drawn.items()]


def _load(point: Point) -> float:
    return float(point.rate if point.rate is not None else point.users or 0)


def _svg(paint: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue().replace(INK, "currentColor")
    return svg[svg.index("<svg") :]  # a page has no XML declaration in its middle


def _by_load(axes: Axes, points: Sequence[Point], unit: str, lines: Sequence[Line]) -> None:
    for label, values, style in lines:
        known = [(_load(point), value) for point, value in zip(points, values, strict=True) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=label, **style)
    axes.set_ylabel(unit)
    axes.set_xlabel("users" if any(point.users is not None for point in points) else "rate (requests/s)")
    if len(points) > 2:
        axes.set_xscale("log")
        ticks = _apart([_load(point) for point in points])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)


def _apart(ticks: Sequence[float]) -> list[float]:
    """The ticks that leave room for their labels on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick > kept[-1] * (ticks[-1] / ticks[0]) ** 0.08:
            kept.append(tick)
    return kept


def _at(times: Percentiles | ModelTimes | None, name: str) -> float | None:
    return None if times is None else float(getattr(times, name))


def _mark(axes: Axes, objective: Objective | None) -> None:
    if objective:
        axes.axhline(objective.p99_ms, color=RED, ls="--", label=f"objective: {objective.p99_ms:g} ms")


def _latency(axes: Axes, points: Sequence[Point], report: Report) -> None:
    lines: list[Line] = [
        (label, [_at(point.latency_ms, name) for point in points], {"color": BLUE, "alpha": 0.3 + 0.23 * number})
        for number, (name, label) in enumerate(PERCENTILES.items())
    ]
    lines.append(("p99.9", [_at(point.latency_ms, "p999") for point in points], {"color": "gray"}))
    from_the_send = [_at(point.service_ms, "p99") for point in points]
    lines.append(("p99 from the send", from_the_send, {"color": GREEN, "ls": ":"}))
    _by_load(axes, points, "ms", lines)
    _mark(axes, report.objective)
    if report.found:
        axes.axvline(report.found, color=ORANGE, label=f"found: {report.found:g}/s")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(ncols=2)


def _throughput(axes: Axes, points: Sequence[Point], report: Report) -> None:
    offered = [point.offered for point in points]
    axes.fill_between([_load(point) for point in points], offered, color=ORANGE, alpha=0.3, lw=0, label="offered")
    _by_load(axes, points, "requests/s", [("achieved", [point.achieved for point in points], {"color": BLUE})])
    axes.set_ylim(bottom=0)
    axes.legend()


def _errors(axes: Axes, points: Sequence[Point], report: Report) -> None:
    percent = [100 / point.requests if point.requests else math.nan for point in points]
    failed = [share * point.failed for share, point in zip(percent, points, strict=True)]
    unsent = [share * point.dropped for share, point in zip(percent, points, strict=True)]
    lines: list[Line] = [("failed", failed, {"color": RED})]
    lines.append(("of them not sent: the bound of requests in flight", unsent, {"color": ORANGE, "ls": ":"}))
    _by_load(axes, points, "% of requests", lines)
    if report.objective:
        axes.axhline(100 * report.objective.error_budget, color="gray", ls="--", label="error budget")
    axes.set_ylim(bottom=0)
    axes.legend()


def _server(axes: Axes, points: Sequence[Point], report: Report) -> None:
    models = sorted({times.model for point in points for times in point.server})
    lines: list[Line] = []
    for number, model in enumerate(models):
        found = [next((times for times in point.server if times.model == model), None) for point in points]
        for part, dashes in (("compute", "-"), ("queue", "--")):
            values = [_at(times, f"{part}_ms") for times in found]
            lines.append((f"{model}: {part}", values, {"color": f"C{number}", "ls": dashes}))
    _by_load(axes, points, "ms for each request, mean", lines)
    if models:
        axes.set_ylim(bottom=0)
        axes.figure.legend(loc="outside right upper")
    else:
        axes.text(0.5, 0.5, "no statistics", transform=axes.transAxes, ha="center")


def _generator(axes: Axes, points: Sequence[Point], report: Report) -> None:
    lags = [_at(point.lag_ms, "p99") for point in points]
    _by_load(axes, points, "ms", [("lag at p99 (ms)", lags, {"color": BLUE})])
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.grid(False)
    cpu = [100 * point.generator.thread_cpu for point in points]
    _by_load(right, points, "% of a core", [("CPU of its Python thread", cpu, {"color": ORANGE})])
    right.set_ylim(0, 105)
    axes.figure.legend(loc="outside upper right", ncols=2)


def _latency_in_time(axes: Axes, point: Point, report: Report) -> None:
    known = [(each.begin, each.latency_ms) for each in point.timeline if each.latency_ms]
    for name, style in (("max", {"color": "gray"}), ("p99", {"color": BLUE}), ("p50", {"color": BLUE, "alpha": 0.45})):
        values = [float(getattr(latency, name)) for _, latency in known]
        axes.plot([begin for begin, _ in known], values, label=name, lw=1.2, marker=".", ms=3, **style)
    _mark(axes, report.objective)
    axes.set(ylim=(0, None), xlabel="s", ylabel="ms")
    axes.legend()


def _requests_in_time(axes: Axes, point: Point) -> None:
    begins = [each.begin for each in point.timeline]
    if point.users is None:
        due = [each.due for each in point.timeline]
        axes.fill_between(begins, due, step="post", color=ORANGE, alpha=0.3, lw=0, label="offered (due)")
    axes.step(begins, [each.answered_then for each in point.timeline], where="post", label="answered", color=BLUE)
    if point.failed:
        axes.step(begins, [each.failed for each in point.timeline], where="post", label="failed", color=RED, lw=1)
    axes.set(ylim=(0, None), xlabel="s", ylabel="requests/s")
    axes.legend()
