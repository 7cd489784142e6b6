"""Whose rows go next? Policies for the engine's queue, compared on drawn arrivals.

    python -m bench.scheduling

Nothing is timed: an engine is simulated that takes ``ROWS_PER_CALL`` rows at a time, each row a unit of work,
and times are in milliseconds of an engine of ``ROWS_PER_S``. Requests are small (10 documents) and large (1,000);
the last policy is the one that serves (model_repository/student/runtime/scheduler.py).
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from model_repository.student.runtime.scheduler import SHARE_OF_OLDEST

ROWS_PER_CALL = 8
ROWS_PER_S = 120.0  # MiniLM-L6 with rows of 256 tokens, on two cores
SMALL_ROWS, LARGE_ROWS = 4, 350  # of 10 and of 1,000 passages of TREC DL
SECONDS = 600.0


@dataclass(eq=False)
class Job:
    """A request in the simulation; times in rows that the engine could have scored by then."""

    arrived: float
    rows: int
    left: int
    last_call: int = -1
    ended: float = 0.0


class Traffic(NamedTuple):
    """Shares of what the engine can do that small and large requests ask for."""

    small_load: float
    large_load: float


class Times(NamedTuple):
    """Milliseconds from arrival to answer."""

    small_p50: float
    small_p99: float
    large_mean: float
    large_worst: float


class Policy(NamedTuple):
    """``order`` of the requests, the lowest first; ``share`` of the rows that goes to the oldest whatever its order."""

    order: Callable[[Job], float]
    share: float = 0.0


def shortest(share: float) -> Policy:
    return Policy(lambda job: job.left, share)


SERVED = f"shortest, {SHARE_OF_OLDEST:.0%} oldest"
POLICIES = {
    "first come": Policy(lambda job: job.arrived),
    "round robin": Policy(lambda job: job.last_call),
    "least served": Policy(lambda job: job.rows - job.left),
    "shortest left": shortest(0.0),
    "shortest, 25% oldest": shortest(0.25),
    SERVED: shortest(SHARE_OF_OLDEST),
}
TRAFFIC = (Traffic(0.7, 0.0), Traffic(0.5, 0.2), Traffic(0.2, 0.5), Traffic(0.85, 0.1), Traffic(1.0, 0.1))


def main(argv: Sequence[str] | None = None) -> int:
    if list(sys.argv[1:] if argv is None else argv):
        print("error: bench.scheduling takes no arguments", file=sys.stderr)
        return 2
    print("load: small  large  policy                small p50     p99  large mean   worst  ms")
    for traffic in TRAFFIC:
        for name, policy in POLICIES.items():
            times = measure(policy, traffic, seed=0)
            row = "".join(f"{value:>{width}.0f}" for value, width in zip(times, (10, 8, 12, 8), strict=True))
            print(f"{traffic.small_load:>11.0%} {traffic.large_load:>6.0%}  {name:<21}{row}")
    return 0


def measure(policy: Policy, traffic: Traffic, seed: int, seconds: float = SECONDS) -> Times:
    jobs = arrivals(traffic, seed, seconds)
    simulate(policy, jobs)
    small, large = (
        [(job.ended - job.arrived) / ROWS_PER_S * 1000 for job in jobs if job.rows == rows]
        for rows in (SMALL_ROWS, LARGE_ROWS)
    )
    p50, p99 = np.percentile(small, [50, 99]).tolist()
    return Times(p50, p99, float(np.mean(large or [np.nan])), max(large, default=np.nan))


def arrivals(traffic: Traffic, seed: int, seconds: float) -> list[Job]:
    """Poisson arrivals of each kind, in order."""
    draw = np.random.default_rng(seed)
    end = seconds * ROWS_PER_S
    jobs = []
    for load, rows in ((traffic.small_load, SMALL_ROWS), (traffic.large_load, LARGE_ROWS)):
        count = int(end * load / rows)
        jobs += [Job(arrived, rows, rows) for arrived in np.sort(draw.uniform(0, end, count)).tolist()]
    return sorted(jobs, key=lambda job: job.arrived)


def simulate(policy: Policy, jobs: Sequence[Job]) -> None:
    """Serve the jobs, which come in order of arrival; fills in ``ended``."""
    waiting, clock, coming, owed, call = list[Job](), 0.0, 0, 0.0, 0
    while coming < len(jobs) or waiting:
        if not waiting:
            clock, owed = max(clock, jobs[coming].arrived), 0.0
        while coming < len(jobs) and jobs[coming].arrived <= clock:
            waiting.append(jobs[coming])
            coming += 1
        room = rows = min(ROWS_PER_CALL, sum(job.left for job in waiting))
        owed += rows * policy.share
        order = [(waiting[0], int(owed)), *((job, rows) for job in heapq.nsmallest(rows, waiting, key=policy.order))]
        owed -= min(int(owed), waiting[0].left)
        for job, most in order:
            taken = min(room, most, job.left)
            job.left -= taken
            room -= taken
            if taken:
                job.last_call, job.ended = call, clock + rows
        clock, call = clock + rows, call + 1
        waiting = [job for job in waiting if job.left]


if __name__ == "__main__":
    sys.exit(main())
