"""The curve of one server: what a load test in an open loop has written, rate by rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import InvalidRequestError
from loadtest._samples import SHARES, Percentiles

Floats = NDArray[np.float64]
LAST, GRID = 0.9999, 1000  # the share of the slowest request, and points by which a mean is found
HELD = 0.01  # of the requests that may have failed: the times of the answered ones tell nothing of the others


@dataclass(frozen=True)
class Step:
    """One rate, in requests a second, which was measured for ``seconds``; ``documents`` is the mean of a request."""

    rate: float
    seconds: float
    requests: int
    failed: float  # of those that were due
    documents: float
    latency: Percentiles
    poisson: bool
    limited: bool  # by the load generator


@dataclass(frozen=True)
class Curve:
    """The steps of one server, by their rates, and the rates that it did not hold, which are not among them."""

    steps: tuple[Step, ...]
    not_held: tuple[float, ...] = ()

    @property
    def documents(self) -> float:
        """The mean number of documents of a request."""
        return sum(step.documents * step.requests for step in self.steps) / sum(step.requests for step in self.steps)

    @property
    def highest(self) -> float:
        return self.steps[-1].rate


def read_curve(paths: Sequence[Path], servers: int = 1) -> Curve:
    """The curve out of one search, or of several reports of a rate each, on so many servers.

    Raises InvalidRequestError, which names the file.
    """
    every = sorted((step for path in paths for step in _steps(path, servers)), key=lambda step: step.rate)
    steps = [step for step in every if step.failed <= HELD]
    if len({step.rate for step in steps}) < 2:
        raise InvalidRequestError(
            f"{', '.join(map(str, paths))}: one rate is no curve: give reports of several rates, or of a search, at "
            f"which at most {HELD:.0%} of the requests failed"
        )
    return Curve(tuple(steps), tuple(step.rate for step in every if step.failed > HELD))


def _steps(path: Path, servers: int) -> list[Step]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if len(report["host"].split(",")) != servers:
            raise InvalidRequestError(f"{path}: is of {report['host']}: the curve of {servers} server(s) is needed")
        steps = [
            _step(point, report["settings"]) for point in report["points"] if point["rate"] and point["latency_ms"]
        ]
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise InvalidRequestError(f"{path}: not a report.json of this project's load test ({error!r})") from error
    if not steps:
        raise InvalidRequestError(f"{path}: no answers in an open loop: measure with --rate or --slo-p99-ms")
    return steps


def _step(point: dict[str, Any], settings: dict[str, Any]) -> Step:
    times = {name: float(value) for name, value in point["latency_ms"].items()}
    if not all(0 < value < np.inf for value in times.values()):
        raise ValueError(f"latency_ms: {times}")
    return Step(
        rate=float(point["offered"]),
        seconds=float(point["seconds"]),
        requests=int(point["answered"]),
        failed=point["failed"] / (point["answered"] + point["failed"]),
        documents=point["documents_per_second"] / point["achieved"],
        latency=Percentiles(**times),
        poisson=settings["arrivals"] == "poisson",
        limited=bool(point["generator"]["limits"]),
    )


def times_of(percentiles: Percentiles, shares: Floats) -> Floats:
    """Milliseconds at these shares: between the known percentiles as if the tail were exponential.

    The fastest time is the one that gives the measured mean.
    """
    known = -np.log1p(-np.array([0.0, *SHARES.values(), LAST]))
    times = np.array([0.0, *(getattr(percentiles, name) for name in SHARES), percentiles.max])
    every = -np.log1p(-(np.arange(GRID) + 0.5) / GRID)
    mean, weight = np.interp(every, known, times).mean(), np.interp(every, known, np.eye(len(known))[0]).mean()
    times[0] = np.clip((percentiles.mean - mean) / weight, 0.0, percentiles.p50)
    return np.interp(-np.log1p(-shares), known, times)
