"""From the measured curve of one server to servers, their cost and headroom, for a traffic and an objective.

    locust -f loadtest/ --host localhost:8001 --headless --slo-p99-ms 50 --documents 100 --report runs/load
    python -m loadtest.capacity runs/load/report.json --rate 2000 --limit_ms 50 --price 2.5

The curve is fitted by a queue, which is simulated at the traffic. Its error where it was measured is in the output.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client import InvalidRequestError
from client.command import command
from loadtest.capacity._measured import HELD, Curve, read_curve
from loadtest.capacity._plan import Plan, Traffic, plan
from loadtest.capacity._queue import FITTED, Goal, Queue, fit, foreseen

WIDTH = 120
FAR, NEAR = 0.15, 0.1  # how far the model may be from a measured p99, and one number of documents from another
LEAST_BUSY, MOST_CLIENTS = 0.01, 10_000


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, or 2 for bad input."""
    given = _parser().parse_args(argv)
    _check(given)
    curve = read_curve(given.measured)
    fitted = fit(curve)
    queue = fitted.of(given.documents or curve.documents)
    goal = Goal(given.limit_ms, given.share)
    found = plan(queue, Traffic(given.rate, given.peak, given.clients), goal, given.spare, given.most_busy, given.price)
    notes = [*_notes(curve, fitted, queue, found)]
    if given.json:
        print(
            json.dumps(
                {**asdict(found), "servers": found.servers, "fit": _fit(curve, fitted), "notes": notes}, indent=1
            )
        )
        return
    console = Console(width=WIDTH)
    console.print(_fit_table(curve, fitted), _plan_table(found, goal), highlight=False)
    for line in (*_result(found, given.rate * given.peak), *(f"note: {note}" for note in notes)):
        print(line)


def _check(given: argparse.Namespace) -> None:
    """Raises InvalidRequestError, which names the flag."""
    for name, most in {
        "rate": 1e9,
        "limit_ms": 1e9,
        "documents": 1e6,
        "peak": 1e3,
        "share": 1.0,
        "most_busy": 1.0,
    }.items():
        value = getattr(given, name)
        if value is not None and not 0 < value <= most:
            raise InvalidRequestError(f"--{name} {value:g}: a number above 0 and at most {most:g} is needed")
    if given.share == 1 or given.most_busy == 1:
        raise InvalidRequestError("--share and --most_busy must be below 1: some request always waits for long")
    if given.most_busy < LEAST_BUSY:
        raise InvalidRequestError(f"--most_busy {given.most_busy:g}: at least {LEAST_BUSY:g} is needed")
    if given.clients > MOST_CLIENTS:
        raise InvalidRequestError(f"--clients {given.clients}: at most {MOST_CLIENTS}; 0 stands for more than these")
    for name in ("price", "spare", "clients"):
        value = getattr(given, name)
        if not 0 <= value < math.inf:
            raise InvalidRequestError(f"--{name} {value:g}: at least 0 is needed")


def _fit(curve: Curve, queue: Queue) -> list[dict[str, float]]:
    """The curve beside the model: milliseconds at each step."""
    return [
        {"rate": step.rate}
        | {f"{name}_ms": getattr(step.latency, name) for name in FITTED}
        | {f"model_{name}_ms": value for name, value in foreseen(queue, step, number).items()}
        for number, step in enumerate(curve.steps)
    ]


def _notes(curve: Curve, fitted: Queue, queue: Queue, found: Plan) -> list[str]:
    notes = []
    off = max(abs(step["model_p99_ms"] / step["p99_ms"] - 1) for step in _fit(curve, fitted))
    if off > FAR:
        notes.append(f"the model is up to {off:.0%} off the measured p99: measure longer, or on a machine of its own")
    if curve.not_held:
        rates = ", ".join(f"{rate:g}" for rate in curve.not_held)
        notes.append(f"left out are {rates} requests/s, of which more than {HELD:.0%} failed")
    if any(step.limited for step in curve.steps):
        notes.append("the load generator was the bottleneck at some rate: the server may do better")
    if abs(queue.documents / curve.documents - 1) > NEAR:
        notes.append(
            f"measured with {curve.documents:.0f} documents, planned for {queue.documents:g}: times in proportion"
        )
    if (measured := found.a_server * queue.documents / curve.documents) > curve.highest:
        notes.append(f"{measured:.1f} requests/s of a server are more than the {curve.highest:.1f} that were measured")
    return notes


def _result(found: Plan, busiest: float) -> list[str]:
    return [
        f"{found.servers:,} servers: {found.needed:,} for {busiest:,.0f} requests/s, of which each takes "
        f"{found.a_server:.1f} at most, and {found.spare} to spare",
        f"headroom: {found.headroom - 1:.0%} more than the peak before the objective fails, with all of them",
        f"cost: {found.a_month:,.0f} a month, {found.a_million:.3g} for a million requests",
    ]


def _fit_table(curve: Curve, queue: Queue) -> Table:
    table = Table(title=f"One server: measured, and the model ({queue.saturation:.1f} requests/s at most)")
    for heading in ("requests/s", *(f"{name} ms" for name in FITTED), *(f"model {name} ms" for name in FITTED)):
        table.add_column(heading, justify="right")
    for step in _fit(curve, queue):
        table.add_row(*(f"{value:.1f}" for value in step.values()))
    return table


def _plan_table(found: Plan, goal: Goal) -> Table:
    table = Table(title="The fleet")
    for heading in ("load", "requests/s", "servers", "engine busy", "p50 ms", "p99 ms", f"within {goal.limit_ms:g} ms"):
        table.add_column(heading, justify="left" if heading == "load" else "right")
    for moment in found.moments:
        times = f"{moment.p50_ms:.1f}", f"{moment.p99_ms:.1f}"
        rate, servers = f"{moment.rate:,.0f}", f"{moment.servers:,}"
        table.add_row(moment.name, rate, servers, f"{moment.busy:.0%}", *times, f"{moment.within:.2%}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("measured", nargs="+", type=Path, metavar="REPORT.json", help="of a search, or of several rates (--report)")
    add("--rate", type=float, required=True, help="requests a second, the mean")
    add("--documents", type=float, help="of a request, the mean; default: as measured")
    add("--limit_ms", type=float, required=True, help="objective: from when a request is due to its answer")
    add("--share", type=float, default=0.99, help="of the requests that are answered so soon (default %(default)s)")
    add("--peak", type=float, default=1.0, help="the busiest minutes over the mean (default %(default)s)")
    add("--spare", type=int, default=1, help="servers that may be lost at the peak (default %(default)s)")
    add("--price", type=float, default=0.0, help="of a server and hour (default %(default)s)")
    add("--clients", type=int, default=0, help="processes that send, each of which knows its own requests only; "
        "0 (default): so many that shares are random")  # fmt: skip
    add("--most_busy", type=float, default=0.9, help="share of an engine's time, at most (default %(default)s)")
    add("--json", action="store_true", help="print JSON in place of tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
