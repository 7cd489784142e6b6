"""The pictures of a report, as SVG texts for its page. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from loadtest._records import Point, Report
from loadtest._samples import Percentiles

PERCENTILES = ("p50", "p90", "p95", "p99", "p999")
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
BLUE, ORANGE, GREEN, RED = "#1f5fa8", "#d9730d", "#2e8540", "#b3261e"


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
    drawn: list[tuple[str, Callable[[Axes], None]]] = [
        ("Latency from when requests were due", lambda axes: _latency(axes, points, report)),
        ("Throughput: offered and achieved", lambda axes: _throughput(axes, points)),
        ("Requests that failed", lambda axes: _errors(axes, points, report)),
        ("Inside the server: queue and compute time", lambda axes: _server(axes, points)),
        ("The load generator: lag of sends and CPU", lambda axes: _generator(axes, points)),
    ]
    return [(title, _svg(paint)) for title, paint in drawn]


def _load(point: Point) -> float:
    return float(point.rate if point.rate is not None else point.users or 0)


def _svg(paint: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]  # a page has no XML declaration in its middle


def _abscissa(axes: Axes, points: Sequence[Point]) -> None:
    closed = any(point.users is not None for point in points)
    axes.set_xlabel("users" if closed else "rate (requests/s)")
    if len(points) > 2:
        axes.set_xscale("log")
        ticks = sorted({_load(point) for point in points})
        axes.set_xticks(_apart(ticks), [f"{tick:g}" for tick in _apart(ticks)])
        axes.set_xticks([], minor=True)


def _apart(ticks: Sequence[float]) -> list[float]:
    """The ticks that leave room for their labels on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick > kept[-1] * (ticks[-1] / ticks[0]) ** 0.08:
            kept.append(tick)
    return kept


def _line(axes: Axes, points: Sequence[Point], values: Sequence[float | None], label: str, **style: Any) -> None:
    known = [(_load(point), value) for point, value in zip(points, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=label, **style)


def _of(times: Percentiles | None, name: str) -> float | None:
    return None if times is None else float(getattr(times, name))


def _latency(axes: Axes, points: Sequence[Point], report: Report) -> None:
    for number, name in enumerate(PERCENTILES):
        label = "p99.9" if name == "p999" else name
        shade = matplotlib.colormaps["Blues"](0.35 + 0.15 * number)
        _line(axes, points, [_of(point.latency_ms, name) for point in points], label, color=shade)
    _line(axes, points, [_of(point.service_ms, "p99") for point in points], "p99 from the send", color=GREEN, ls=":")
    if report.objective:
        axes.axhline(report.objective.p99_ms, color=RED, ls="--", label=f"objective: {report.objective.p99_ms:g} ms")
    if report.found:
        axes.axvline(report.found, color=ORANGE, label=f"found: {report.found:g}/s")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("ms")
    _abscissa(axes, points)
    axes.legend(fontsize=8, ncols=2)


def _latency_in_time(axes: Axes, point: Point, report: Report) -> None:
    known = [(each.begin, each.latency_ms) for each in point.timeline if each.latency_ms]
    times = [begin for begin, _ in known]
    for name, colour in (("p50", "#9cc3e6"), ("p99", BLUE), ("max", "gray")):
        values = [getattr(latency, name) for _, latency in known]
        axes.plot(times, values, label=name, color=colour, lw=1.2, marker=".", ms=3)
    if report.objective:
        axes.axhline(report.objective.p99_ms, color=RED, ls="--", label=f"objective: {report.objective.p99_ms:g} ms")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms")
    axes.set_xlabel("s")
    axes.legend(fontsize=8)


def _requests_in_time(axes: Axes, point: Point) -> None:
    times = [each.begin for each in point.timeline]
    begun = "sent" if point.users is not None else "offered (due)"
    axes.step(times, [each.due for each in point.timeline], where="post", label=begun, color=ORANGE, ls="--")
    axes.step(times, [each.answered_then for each in point.timeline], where="post", label="answered", color=BLUE)
    axes.step(times, [each.failed for each in point.timeline], where="post", label="failed", color=RED, lw=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests/s")
    axes.set_xlabel("s")
    axes.legend(fontsize=8)


def _throughput(axes: Axes, points: Sequence[Point]) -> None:
    _line(axes, points, [point.offered for point in points], "offered", color=ORANGE, ls="--")
    _line(axes, points, [point.achieved for point in points], "achieved", color=BLUE)
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    _abscissa(axes, points)
    axes.legend(fontsize=8)


def _errors(axes: Axes, points: Sequence[Point], report: Report) -> None:
    shares = [100 * point.failed / point.requests if point.requests else None for point in points]
    _line(axes, points, shares, "failed", color=RED)
    unsent = [100 * point.dropped / point.requests if point.requests else None for point in points]
    _line(axes, points, unsent, "of them not sent: the bound of requests in flight", color=ORANGE, ls=":")
    if report.objective:
        axes.axhline(100 * report.objective.error_budget, color="gray", ls="--", label="error budget")
    axes.set_ylabel("% of requests")
    axes.set_ylim(bottom=0)
    _abscissa(axes, points)
    axes.legend(fontsize=8)


def _server(axes: Axes, points: Sequence[Point]) -> None:
    models = sorted({times.model for point in points for times in point.server})
    for number, model in enumerate(models):
        colour = f"C{number}"
        found = [next((times for times in point.server if times.model == model), None) for point in points]
        compute = [times.compute_ms if times else None for times in found]
        queue = [times.queue_ms if times else None for times in found]
        _line(axes, points, compute, f"{model}: compute", color=colour)
        _line(axes, points, queue, f"{model}: queue", color=colour, ls="--")
    axes.set_ylabel("ms for each request, mean")
    _abscissa(axes, points)
    if models:
        axes.set_ylim(bottom=0)
        axes.figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.text(0.5, 0.5, "no metrics", transform=axes.transAxes, ha="center")


def _generator(axes: Axes, points: Sequence[Point]) -> None:
    _line(axes, points, [_of(point.lag_ms, "p99") for point in points], "lag at p99 (ms)", color=BLUE)
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    _abscissa(axes, points)
    right = axes.twinx()
    right.grid(False)
    right.set_ylim(0, 105)
    right.set_ylabel("% of a core")
    _line(
        right, points, [100 * point.generator.thread_cpu for point in points], "CPU of its Python thread", color=ORANGE
    )
    axes.figure.legend(fontsize=8, loc="outside upper right", ncols=2)
