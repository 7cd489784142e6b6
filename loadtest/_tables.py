"""The tables of a report. Each has the columns that mean something in its kind of run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest._records import SINGLE, Point, Report
from loadtest._results import load
from loadtest._samples import Percentiles

TIMES = {"p50": "p50 ms", "p90": "p90", "p95": "p95", "p99": "p99", "p999": "p99.9", "max": "max"}
WORDS = ("stage", "objective", "model", "what the client said")  # columns that are read, not compared
SERVER = """Means of Triton's statistics from the first request that counts to the last answer. A model with a queue of
its own (the student in the Python backend) counts the waiting there as compute time."""
Column = tuple[str, Callable[..., object]]


@dataclass(frozen=True)
class Table:
    """Rows of text; ``classes`` has the style of each row."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    classes: Sequence[str]
    note: str = ""


def tables(report: Report, points: Sequence[Point]) -> list[Table]:
    """The tables that have a row."""
    failures = [(point, pair) for point in points for pair in point.failures.items()]
    servers = [(point, times) for point in points for times in point.server]
    made = [
        _table("Figures", _figures(report, points), ((point, point) for point in points), points),
        _table("The load generator", _generator(points), ((point, point) for point in points), points),
        _table("Failures", [("requests", lambda pair: pair[1]), ("what the client said", lambda pair: pair[0])],
               failures, points),
        _table("Inside the server", _SERVER, servers, points, SERVER),
    ]  # fmt: skip
    return [table for table in made if table.rows]


def _table(
    title: str, columns: Sequence[Column], rows: Iterable[tuple[Point, Any]], points: Sequence[Point], note: str = ""
) -> Table:
    """A row for each pair of a point, which names it, and what the columns read."""
    named, rows = _names(points), list(rows)
    cells = [[str(read(point)) for _, read in named] + [str(read(one)) for _, read in columns] for point, one in rows]
    return Table(title, [name for name, _ in (*named, *columns)], cells, [_class(point) for point, _ in rows], note)


def _class(point: Point) -> str:
    return "" if not point.verdict else "good" if point.verdict.holds else "bad"


def _names(points: Sequence[Point]) -> list[Column]:
    first: Column = ("users", lambda point: point.users) if _closed(points) else ("rate", load)
    named = any(point.stage != SINGLE or point.interrupted for point in points)
    stage: Column = ("stage", lambda point: point.stage + (", stopped" if point.interrupted else ""))
    return [first, stage] if named else [first]


def _closed(points: Sequence[Point]) -> bool:
    return any(point.users is not None for point in points)


def _figures(report: Report, points: Sequence[Point]) -> list[Column]:
    achieved: Column = ("requests/s", lambda point: f"{point.achieved:.1f}")
    rates = [achieved] if _closed(points) else [
        ("offered/s", lambda point: f"{point.offered:.1f}"), ("achieved/s", achieved[1])
    ]  # fmt: skip
    unsent: Column = ("not sent", lambda point: point.dropped)
    objective: Column = ("objective", lambda point: point.verdict.reason if point.verdict else "")
    return [
        *rates,
        ("documents/s", lambda point: f"{point.documents_per_second:.0f}"),
        ("requests", lambda point: point.requests),
        ("failed", lambda point: point.failed),
        *([unsent] if any(point.dropped for point in points) else []),
        *(_time(label, "latency_ms", name) for name, label in TIMES.items()),
        *([objective] if report.objective else []),
    ]


def _generator(points: Sequence[Point]) -> list[Column]:
    sends: list[Column] = [] if _closed(points) else [
        _time("late, p50 ms", "lag_ms", "p50"), _time("late, p99 ms", "lag_ms", "p99"),
        _time("from the send, p50 ms", "service_ms", "p50"), _time("from the send, p99 ms", "service_ms", "p99"),
    ]  # fmt: skip
    return [
        ("seconds", lambda point: f"{point.seconds:.1f}"),
        *sends,
        ("CPU: its Python thread", lambda point: f"{point.generator.thread_cpu:.0%}"),
        ("CPU: all", lambda point: f"{point.generator.process_cpu:.0%}"),
        ("KB sent", lambda point: f"{point.request_bytes / 1000:.1f}"),
        ("KB answered", lambda point: f"{point.response_bytes / 1000:.1f}"),
    ]


_SERVER: list[Column] = [
    ("model", lambda times: times.model),
    ("requests", lambda times: times.requests),
    ("queue ms", lambda times: f"{times.queue_ms:.2f}"),
    ("compute ms", lambda times: f"{times.compute_ms:.2f}"),
    ("requests a batch", lambda times: f"{times.requests_per_batch:.2f}"),
]


def _time(label: str, times: str, name: str) -> Column:
    def read(point: Point) -> str:
        found: Percentiles | None = getattr(point, times)
        milliseconds = None if found is None else getattr(found, name)
        return "-" if milliseconds is None else f"{milliseconds:.{1 if milliseconds < 1000 else 0}f}"

    return label, read
