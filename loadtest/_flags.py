"""The flags that we add to Locust's, and the settings that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.connection import LONGEST_S
from loadtest._schedule import ARRIVALS
from loadtest._search import Objective, Plan
from loadtest._traffic import Counts

STEP_S = 10.0
FASTEST = 1e6  # requests/s: more than a process can send, and few enough to schedule
LONGEST_WARM_UP_S = 86_400.0


@dataclass(frozen=True)
class Settings:
    """Settings of a run. Without ``rate`` and ``plan`` it is a closed loop, otherwise an open one."""

    queries: Path
    counts: Counts  # documents of a request
    seed: int
    model: str
    timeout_s: float
    arrivals: str  # poisson or constant
    in_flight: int  # requests at a time, at most
    warm_up: float  # seconds before each rate, not counted
    seconds: float  # at one rate; may be infinite
    rate: float | None  # requests/s
    plan: Plan | None  # a search for the highest rate
    objective: Objective | None
    report: Path | None

    @property
    def is_open(self) -> bool:
        return self.rate is not None or self.plan is not None


def add_flags(parser: Any) -> None:
    """Add the flags; those of the parser itself are fields of the page's form, too, which shows their defaults."""
    add = parser.add_argument
    add("--queries", default="runs/demo/collection/test.jsonl",
        help='JSON lines {"query", "documents": [{"doc_id", "title", "summary"}]}')  # fmt: skip
    add("--documents", default="0",
        help="per request: 100, 10:0.7,100:0.3 (by weight) or uniform:1-200; 0: the query's own")  # fmt: skip
    add("--seed", type=int, default=0, help="of queries, numbers of documents and arrivals")
    add("--model", default="ranker", help="the ensemble")
    add("--timeout", type=float, default=30.0, help="seconds for an answer")
    add = parser.add_argument_group("open loop", "arrival rates, objectives and the report").add_argument
    add("--report", help="a directory for report.html and report.json, or PATH.html (and PATH.json beside it)")
    add("--rate", type=float, help="open loop: requests a second at scheduled times, for --run-time; needs --headless")
    add("--arrivals", choices=ARRIVALS, default="poisson", help="of an open loop (default %(default)s)")
    add("--in-flight", type=int, default=512,
        help="open loop: what is due while so many are under way fails unsent (default %(default)s)")  # fmt: skip
    add("--warm-up", type=float, default=2.0, help="seconds before each rate, not counted (default %(default)s)")
    add("--slo-p99-ms", type=float, help="objective: p99 from when requests were due. With --rate, whether it holds "
        f"there; without, the highest rate that holds it, --run-time (default {STEP_S:.0f}s) each rate")  # fmt: skip
    add("--error-budget", type=float, default=0.001, help="share of requests that may fail (default %(default)s)")
    add("--lowest-rate", type=float, default=1.0, help="where the search begins (default %(default)s)")
    add("--highest-rate", type=float, default=10_000.0, help="where it ends at the latest (default %(default)s)")
    add("--step-factor", type=float, default=2.0, help="from one rate to the next (default %(default)s)")
    add("--tries", type=int, default=2, help="measurements of a rate before it counts as failed (default %(default)s)")
    add("--tolerance", type=float, default=0.05, help="how close the search gets, a share (default %(default)s)")


def read_settings(options: Any) -> Settings:
    """Settings from the flags. Raises ValueError that names flags which exclude each other or make no sense."""
    searches = options.slo_p99_ms is not None and options.rate is None
    if options.rate is not None or searches:
        _check_open_loop(options)
    _check_numbers(options)
    plan = Plan(options.lowest_rate, options.highest_rate, options.step_factor, options.tolerance, options.tries)
    objective = None if options.slo_p99_ms is None else Objective(options.slo_p99_ms, options.error_budget)
    try:
        counts = Counts.parse(options.documents)
    except ValueError as error:
        raise ValueError(f"--documents {error}") from error
    same = ("seed", "model", "arrivals", "in_flight", "warm_up", "rate")
    return Settings(
        queries=Path(options.queries),
        counts=counts,
        timeout_s=options.timeout,
        seconds=float(options.run_time or (STEP_S if searches else math.inf)),
        plan=plan if searches else None,
        objective=objective,
        report=Path(options.report) if options.report else None,
        **{name: getattr(options, name) for name in same},
    )


def _check_open_loop(options: Any) -> None:
    name = "--rate" if options.rate is not None else "--slo-p99-ms"
    if not options.headless:
        raise ValueError(f"{name} needs --headless: the page is for users who wait for their answers")
    if options.num_users is not None:
        raise ValueError(f"{name} or --users, not both: users wait for their answers, a rate does not")
    if options.master or options.worker or options.processes:
        raise ValueError(f"{name} runs in one process: without --master, --worker and --processes")


def _check_numbers(options: Any) -> None:
    for name, most in {"rate": FASTEST, "highest_rate": FASTEST, "slo_p99_ms": LONGEST_S, "timeout": LONGEST_S}.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= most:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: a number above 0 and at most {most:g} is needed")
    if not 0 <= options.warm_up <= LONGEST_WARM_UP_S:
        raise ValueError(f"--warm-up {options.warm_up:g}: seconds, from 0 to {LONGEST_WARM_UP_S:g}")
    if not 0 <= options.error_budget < 1:
        raise ValueError(f"--error-budget {options.error_budget:g}: a share, from 0 to below 1")
    if options.in_flight < 1:
        raise ValueError(f"--in-flight {options.in_flight}: at least 1")
