"""The records of a soak and the failures that a fault explains, as tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from bench.report import picture, table_of

AFTER_S = 1.0  # a request that was under way while the server came back
ENDS = 0.1  # share of the samples that the first and the last figures are taken from


class Request(NamedTuple):
    """A request that has ended: when it was sent, how long it took, and the name of its error, "" for an answer."""

    kind: str
    sent: float
    seconds: float
    error: str


class Struck(NamedTuple):
    """A fault: when it was done, and when the server answered again, None if it did not."""

    fault: str
    at: float
    healthy_at: float | None


class Sample(NamedTuple):
    """The server's processes at a moment: bytes of memory and of shared memory, and open files."""

    at: float
    memory: int
    shared: int
    files: int


def explained(request: Request, struck: Sequence[Struck]) -> bool:
    """Whether a fault was felt while the request was under way."""
    ended = request.sent + request.seconds
    return any(ended >= one.at and request.sent <= (one.healthy_at or math.inf) + AFTER_S for one in struck)


def table_of_requests(kinds: Iterable[str], requests: Sequence[Request], struck: Sequence[Struck], about: str) -> Table:
    shown = table_of(
        f"mixed load; {about}", ["requests", "answered", "failed", "explained", "p50 ms", "p99 ms"], ["requests"]
    )
    for kind in kinds:
        mine = [one for one in requests if one.kind == kind]
        times = [1000 * one.seconds for one in mine if not one.error] or [float("nan")]
        failed = [one for one in mine if one.error]
        figures = (len(mine) - len(failed), len(failed), sum(explained(one, struck) for one in failed))
        shown.add_row(kind, *map(str, figures), *(f"{np.percentile(times, share):.0f}" for share in (50, 99)))
    waits = [one.healthy_at - one.at for one in struck if one.healthy_at is not None]
    if waits:
        shown.caption = f"seconds until it answered again: median {np.median(waits):.1f}, longest {max(waits):.1f}"
    return shown


def table_of_growth(samples: Sequence[Sample]) -> Table:
    """The first and the last samples, medians."""
    shown = table_of("what the server holds", ["", "first", "last"], [""])
    count = max(1, round(ENDS * len(samples)))
    for name, unit in (("memory", 1e6), ("shared", 1e6), ("files", 1)):
        first, last = (np.median([getattr(one, name) for one in part]) for part in (samples[:count], samples[-count:]))
        shown.add_row(name + (", MB" if unit > 1 else ""), f"{first / unit:,.0f}", f"{last / unit:,.0f}")
    return shown


def draw(
    kinds: Iterable[str],
    requests: Sequence[Request],
    struck: Sequence[Struck],
    samples: Sequence[Sample],
    begun: float,
    path: Path,
    about: str,
) -> None:
    """Latencies and failures over time with the faults, and what the server holds, as a PNG."""
    with picture(path, f"soak; {about}", (11, 8)) as figure:
        above, below, last = figure.subplots(3, 1, sharex=True)
        for kind in kinds:
            answered = [one for one in requests if one.kind == kind and not one.error]
            above.plot([(one.sent - begun) / 60 for one in answered], [1000 * one.seconds for one in answered], ".",
                       markersize=2, label=kind)  # fmt: skip
        failed = [(one.sent - begun) / 60 for one in requests if one.error]
        above.plot(failed, [1.0] * len(failed), "x", color="tab:red", markersize=4, label="failed")
        above.set(yscale="log", ylabel="ms")
        above.legend(loc="upper right", markerscale=3)
        times = [(one.at - begun) / 60 for one in samples]
        below.plot(times, [one.memory / 1e6 for one in samples], label="memory")
        below.plot(times, [one.shared / 1e6 for one in samples], label="shared memory")
        below.set(ylabel="MB", ylim=0)
        last.plot(times, [one.files for one in samples], label="open files")
        last.set(ylabel="files", ylim=0, xlabel="minutes")
        for axes in (above, below, last):
            for one in struck:
                axes.axvline((one.at - begun) / 60, color="tab:red", alpha=0.3, linewidth=1)
            axes.legend(loc="upper right")
