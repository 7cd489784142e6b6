"""Compare what loadtest.capacity foresees for two servers, from the curve of one, with what two were measured to do.

    python -m bench.capacity --one runs/one-*/report.json --two runs/two-*/report.json

Give reports of several rates (--rate, --report), first of one server, then of both (--host A,B), with the same
--documents. The load test's own client balances between the two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.report import show, table_of
from client.command import command
from loadtest.capacity._measured import Curve, read_curve
from loadtest.capacity._queue import Goal, Queue, fit, highest_rate

SHARE, MOST_BUSY, LIMITS = 0.99, 0.999, 5


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("one", "two"):
        parser.add_argument(f"--{name}", nargs="+", type=Path, required=True, metavar="REPORT.json")
    given = parser.parse_args(argv)
    curves = read_curve(given.one), read_curve(given.two, servers=2)
    queue = fit(curves[0])
    table = table_of(
        "Requests/s up to which the p99 holds: measured (between its steps in straight lines), and the model",
        ("p99 within ms", "one", "model", "off by", "two", "model", "off by"),
        left=(),
    )
    off = []
    for limit_ms in _limits(curves):
        cells = [f"{limit_ms:.0f}"]
        for servers, curve in enumerate(curves, start=1):
            rates = measured_rate(curve, limit_ms), _foreseen(queue, servers, limit_ms)
            off.append(rates[1] / rates[0] - 1)
            cells += [*(f"{rate:.1f}" for rate in rates), f"{off[-1]:+.0%}"]
        table.add_row(*cells)
    show(table)
    print(f"off by at most {max(map(abs, off)):.0%}")


def _limits(curves: Sequence[Curve]) -> list[float]:
    """Objectives in milliseconds that all curves cross."""
    lowest = max(curve.steps[0].latency.p99 for curve in curves)
    highest = min(curve.steps[-1].latency.p99 for curve in curves)
    return [float(limit) for limit in np.geomspace(1.05 * lowest, highest, LIMITS)]


def measured_rate(curve: Curve, limit_ms: float) -> float:
    """The rate at which the measured p99, which may only grow with the rate, reaches the limit."""
    p99 = np.maximum.accumulate([step.latency.p99 for step in curve.steps])
    return float(np.interp(np.log(limit_ms), np.log(p99), [step.rate for step in curve.steps]))


def _foreseen(queue: Queue, servers: int, limit_ms: float) -> float:
    return highest_rate(queue, servers, 1, Goal(limit_ms, SHARE), MOST_BUSY)


if __name__ == "__main__":
    sys.exit(main())
