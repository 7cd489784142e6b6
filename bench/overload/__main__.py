"""Ask more of a server than it can do, and count what it answers in time, then and five seconds later.

    python -m bench.overload --model_repository model_repository --queries runs/demo/collection/test.jsonl

The server runs on this machine, beside the load generator, whose share of the processors is in the table. A line is the
round with the median rate in time, and the share of the peak has the lowest and the highest of the rounds.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from bench.children import Child, serving
from bench.overload.load import ANSWERED, LATE, REFUSED, UNSENT, Callers, Load
from bench.report import Spread, command_of, described, machine, show, table_of, write
from bench.serving.processes import family_memory
from client.attempts import Throttle
from loadtest._samples import Percentiles
from loadtest._schedule import arrivals
from loadtest._traffic import Counts, Request, read_groups, traffic
from trainer.command import FlagError, command, parse

# Of the sustainable rate, seconds before it, and whether callers refuse themselves what a RankingClient would.
STEPS = ((0.5, 0, False), (1, 0, False), (2, 0, False), (5, 0, False), (0.8, 5, False), (5, 0, True), (0.8, 5, True))
MESSAGES = 500  # that differ; then they come again
CALLERS, PATIENCE_S = 8, 60.0  # of the closed loop that finds the sustainable rate
MODEL = "ranker"
HEADINGS = ("load", "offered/s", "in time/s", "of the peak", "refused/s", "not sent/s", "late/s", "failed",
            "p50 ms", "p99 ms", "refusal p99 ms", "lag p99 ms", "server cores", "generator cores",
            "memory MB")  # fmt: skip


@dataclass
class OverloadArguments:
    """The server, its requests and how long each rate lasts."""

    model_repository: str = field(default="model_repository", metadata={"help": "Served on the processor."})
    queries: str = field(default="runs/demo/collection/test.jsonl", metadata={"help": "JSON lines, as for loadtest."})
    documents: str = field(default="50", metadata={"help": "Of a request, as for loadtest."})
    limit_ms: float = field(default=500.0, metadata={"help": "How long a caller waits."})
    seconds: float = field(default=10.0, metadata={"help": "Of each rate."})
    rounds: int = field(default=3, metadata={"help": "How often all rates are measured, one after the other."})
    rate: float | None = field(default=None, metadata={"help": "Sustainable requests/s; else those of a closed loop."})
    seed: int = field(default=0, metadata={"help": "Of the requests and of when they are due."})
    output: str | None = field(default=None, metadata={"help": "JSON file of all numbers."})


@dataclass(frozen=True)
class Row:
    """One rate. Cores are those that were busy on average, memory the most that the server had."""

    name: str
    load: Load
    server_cores: float
    generator_cores: float
    memory_bytes: int


class Watch:
    """The processors' time and the memory of a server and of this process, from now on."""

    def __init__(self, server: Child) -> None:
        self._server = psutil.Process(server.process.pid)
        self._before = time.perf_counter(), self._seconds(), time.process_time()

    def row(self, name: str, load: Load) -> Row:
        now = time.perf_counter(), self._seconds(), time.process_time()
        wall, served, generated = (after - before for after, before in zip(now, self._before, strict=True))
        return Row(name, load, served / wall, generated / wall, family_memory(self._family()))

    def _family(self) -> list[psutil.Process]:
        return [self._server, *self._server.children(recursive=True)]

    def _seconds(self) -> float:
        total = 0.0
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, OverloadArguments)
    requests = requests_of(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(arguments.model_repository, Path(folder) / "log") as (server, ports),
    ):
        url = f"127.0.0.1:{ports['grpc']}"
        patient = Callers(url, MODEL, requests, PATIENCE_S)
        hurried = [
            Callers(url, MODEL, requests, arguments.limit_ms / 1000, throttle) for throttle in (None, Throttle())
        ]
        rounds = [measured(arguments, patient, hurried, server) for _ in range(arguments.rounds)]
    if arguments.output:
        write(Path(arguments.output), {"command": command_of("bench.overload", argv), "machine": machine(0),
                                       "rounds": [[{**vars(row), "load": vars(row.load)} for row in rows]
                                                  for rows in rounds]})  # fmt: skip
    show(table(rounds, f"callers wait {arguments.limit_ms:g} ms; {described(machine(0))}"))


def requests_of(arguments: OverloadArguments) -> list[Request]:
    """Raises FlagError for a flag that makes no sense."""
    for name in ("limit_ms", "seconds", "rate", "rounds"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise FlagError(f"--{name} {value:g}: above 0 is needed")
    try:
        counts = Counts.parse(arguments.documents)
    except ValueError as error:
        raise FlagError(f"--documents {error}") from error
    return [*islice(traffic(read_groups(Path(arguments.queries)), counts, arguments.seed), MESSAGES)]


def measured(arguments: OverloadArguments, patient: Callers, hurried: Sequence[Callers], server: Child) -> list[Row]:
    """The closed loop of ``patient`` callers, then each rate of ``hurried`` ones, without and with a throttle."""
    patient.closed_loop(CALLERS, min(arguments.seconds, 3.0))  # what is new: documents, memory, the engine's speed
    watch = Watch(server)
    rows = [watch.row(f"{CALLERS} patient callers", patient.closed_loop(CALLERS, arguments.seconds))]
    sustainable = arguments.rate or rows[0].load.a_second(ANSWERED)
    for number, (step, pause_s, throttled) in enumerate(STEPS):
        time.sleep(pause_s)
        watch = Watch(server)
        times = arrivals("poisson", step * sustainable, arguments.seconds, arguments.seed + number)
        name = f"{step:g} times" + f", {pause_s} s later" * bool(pause_s) + ", throttled" * throttled
        rows.append(watch.row(name, hurried[throttled].open_loop(times, arguments.seconds)))
        print(f"{rows[-1].name}: {rows[-1].load.a_second(ANSWERED):.1f}/s in time", file=sys.stderr)
    return rows


def table(rounds: Sequence[Sequence[Row]], title: str) -> Table:
    """A line for each rate; a round's peak is the most that was answered at any of its rates."""
    shown = table_of(title, HEADINGS, left=("load",))
    peaks = [max(row.load.a_second(ANSWERED) for row in rows) or 1.0 for rows in rounds]
    for same in zip(*rounds, strict=True):
        shares = Spread.of([row.load.a_second(ANSWERED) / peak for row, peak in zip(same, peaks, strict=True)])
        row = sorted(same, key=lambda one: one.load.a_second(ANSWERED))[len(same) // 2]
        load = row.load
        rates = [f"{load.a_second():.1f}", f"{load.a_second(ANSWERED):.1f}"]
        rates.append(f"{shares.median:.0%} [{shares.low:.0%}, {shares.high:.0%}]")
        rates += [f"{load.a_second(one):.1f}" for one in (REFUSED, UNSENT, LATE)]
        times = [
            _percentile(load.latency, "p50"),
            *(_percentile(one, "p99") for one in (load.latency, load.refusal, load.lag)),
        ]
        cores = [f"{row.server_cores:.2f}", f"{row.generator_cores:.2f}"]
        shown.add_row(row.name, *rates, str(load.others), *times, *cores, f"{row.memory_bytes / 1e6:.0f}")
    return shown


def _percentile(percentiles: Percentiles | None, name: str) -> str:
    value: Any = getattr(percentiles, name, None)
    return "" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
