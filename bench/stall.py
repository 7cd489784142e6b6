"""A server that stands still for some seconds on purpose: what an open and a closed loop show, and what theory says.

    python -m bench.stall --host localhost:8001 --queries queries.jsonl --rate 20

With r requests a second, a stall of s seconds and a server that answers c a second, the delay of those who come u
seconds after the stall's beginning is s - u + u * r / c in a queue without breaks: it falls evenly from s to 0 over
s / (1 - r / c) seconds. So r * (s - x) / (1 - r / c) requests wait more than x, and all together
r * s^2 / (2 * (1 - r / c)). Of n users who wait for answers each has one request under way when the stall begins: n are
slow, by s each, whatever r is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench.machine import described, machine, show
from bench.open_loop import end_locust, run_locust, start_locust
from bench.stalling import StallingRelay
from client.files import appears_whole
from trainer.command import command, parse
from trainer.data.records import DataError

START_S = 5.0  # of Locust, at most; the stall comes when it is surely at work
CAPACITY_S = 6.0


@dataclass
class StallArguments:
    """The load, and the process that is stopped."""

    queries: str = field(metadata={"help": "JSONL of queries with documents."})
    host: str = field(default="localhost:8001", metadata={"help": "host:port of its gRPC."})
    documents: str = field(default="100", metadata={"help": "Per request, as --documents of the load test."})
    rate: float = field(default=20.0, metadata={"help": "Requests a second of the open loop, evenly."})
    users: int = field(default=4, metadata={"help": "Of the closed loop."})
    seconds: float = field(default=30.0, metadata={"help": "Of each loop."})
    stall: float = field(default=2.0, metadata={"help": "Seconds that a relay before the server stands still in each."})
    output: str | None = field(default=None, metadata={"help": "JSON to write."})


class Figures(NamedTuple):
    """``slow``: requests that took longer than half of the stall; ``p99`` (None: not of the stall) and ``mean`` in
    milliseconds."""

    slow: float
    p99: float | None
    mean: float


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, StallArguments)
    half_ms = 500 * arguments.stall
    # With as many under way as wait when the stall is over: the larger a queue, the fuller the batches.
    waiting = max(1, round(arguments.rate * arguments.stall))
    capacity = run_locust(_flags(arguments, CAPACITY_S, users=waiting))["achieved"]
    if capacity <= arguments.rate:
        raise DataError(f"the server answers {capacity:.1f} requests/s: --rate {arguments.rate:g} must be below")
    calm = run_locust(_flags(arguments, arguments.seconds, rate=arguments.rate))
    seen = {
        "open": _with_stall(arguments, _flags(arguments, arguments.seconds, rate=arguments.rate)),
        "closed": _with_stall(arguments, _flags(arguments, arguments.seconds, users=arguments.users)),
    }
    expected = {
        "open": predicted_open(arguments, capacity, calm["latency_ms"], seen["open"]["requests"]),
        "closed": predicted_closed(arguments, seen["closed"]),
    }
    measured = {name: _figures(point, half_ms) for name, point in seen.items()}
    _show(arguments, capacity, expected, measured)
    if arguments.output:
        found = {"machine": machine(0), "arguments": asdict(arguments), "capacity_per_second": capacity,
                 "expected": {name: each._asdict() for name, each in expected.items()},
                 "measured": {name: each._asdict() for name, each in measured.items()}}  # fmt: skip
        with appears_whole(Path(arguments.output)) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def predicted_open(arguments: StallArguments, capacity: float, calm: dict[str, float], requests: int) -> Figures:
    """``calm``: latencies of the same rate without a stall, in milliseconds, that come on top of the delays."""
    stall, rate, left = arguments.stall, requests / arguments.seconds, 1 - arguments.rate / capacity
    worst_share = max(0.0, stall - 0.01 * arguments.seconds * left)  # 1% of the requests wait longer
    mean = 1000 * rate * stall**2 / (2 * left) / requests
    return Figures(rate * stall / 2 / left, 1000 * worst_share + calm["p50"], mean + calm["mean"])


def predicted_closed(arguments: StallArguments, seen: dict[str, Any]) -> Figures:
    """The p99 is of the stall only if its few requests are 1% of all."""
    share = arguments.users / seen["requests"]
    usual = seen["latency_ms"]["p50"]
    p99 = 1000 * arguments.stall + usual if share > 0.01 else None
    return Figures(arguments.users, p99, usual + 1000 * arguments.stall * share)


def _figures(point: dict[str, Any], half_ms: float) -> Figures:
    bounds = dict(point["slower_than_ms"])
    if half_ms not in bounds:
        raise DataError(f"--stall: half of it must be one of {', '.join(f'{bound:g}' for bound in bounds)} ms")
    return Figures(bounds[half_ms], point["latency_ms"]["p99"], point["latency_ms"]["mean"])


def _flags(arguments: StallArguments, seconds: float, rate: float | None = None, users: int | None = None) -> list[str]:
    load = (
        ["--rate", str(rate), "--arrivals", "constant", "--warm-up", "0"]
        if rate
        else ["-u", str(users), "-r", str(users)]
    )
    same = ["--host", arguments.host, "--queries", arguments.queries, "--documents", arguments.documents]
    return [*load, "-t", f"{seconds:g}s", *same]


def _with_stall(arguments: StallArguments, flags: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, StallingRelay(arguments.host) as relay:
        process = start_locust([*flags, "--host", relay.url], Path(directory))
        time.sleep(START_S + arguments.seconds / 4)
        relay.stall(arguments.stall)
        return end_locust(process, Path(directory))


def _show(
    arguments: StallArguments, capacity: float, expected: dict[str, Figures], measured: dict[str, Figures]
) -> None:
    load = f"{arguments.rate:g} requests/s or {arguments.users} users of {arguments.documents} documents"
    title = f"{load}, {arguments.seconds:g} s, a stall of {arguments.stall:g} s; the server answers {capacity:.0f}/s"
    table = Table(title=f"{title}; {described(machine(0))}")
    for heading in ("loop", "", f"slower than {arguments.stall / 2:g} s", "p99 (ms)", "mean (ms)"):
        table.add_column(heading, justify="left" if heading in ("", "loop") else "right")
    for name in measured:
        for kind, figures in (("theory", expected[name]), ("measured", measured[name])):
            p99 = "as without" if figures.p99 is None else f"{figures.p99:.0f}"
            table.add_row(name, kind, f"{figures.slow:.0f}", p99, f"{figures.mean:.0f}")
    show(table)


if __name__ == "__main__":
    sys.exit(main())
