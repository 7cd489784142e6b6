"""Three servers under an open-loop load: one dies, one becomes slow, all are replaced; what do the callers feel?

    python -m bench.fleet --model_repository model_repository --queries runs/demo/collection/test.jsonl

Requests are sent by one AsyncRankingClient when they are due, whatever has become of those before, and latency
counts from then. A server that is killed (SIGKILL, with all of its processes) stays away until the phase ends. A slow
one shares a core with processes that do nothing else. Exit code 1 if a ranking failed, or if the p99 of what is due
5 s after a server was killed or slowed, or later, is above twice the steady p99, and more than 50 ms above it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.table import Table

from bench.children import Child, free_ports, healthy, started, triton
from bench.report import show, table_of
from client import AsyncRankingClient, RankingError
from client.command import command
from loadtest._samples import Percentiles
from loadtest._schedule import arrivals
from loadtest._traffic import Counts, Request, read_groups, traffic
from trainer.command import FlagError, parse

SERVERS, PHASE_LEAST_S = 3, 7.0
BACK_S, TIMES, MORE_MS = 5.0, 2.0, 50.0
STEADY, KILLED, SLOW, REPLACED = "steady", "one killed", "one slowed", "all replaced"


@dataclass
class FleetArguments:
    """The servers, the load and the time of each phase."""

    model_repository: str = field(default="model_repository", metadata={"help": "Served on the processor."})
    queries: str = field(default="runs/demo/collection/test.jsonl", metadata={"help": "JSON lines, as for loadtest."})
    documents: str = field(default="10", metadata={"help": "Of a request, as for loadtest."})
    rate: float = field(default=20.0, metadata={"help": "Requests a second, to all servers together."})
    seconds: float = field(default=15.0, metadata={"help": "Of each phase."})
    burners: int = field(default=8, metadata={"help": "Processes that share a core with the slow server."})
    hedge: float | None = field(default=None, metadata={"help": "The client's hedge, a share such as 0.95."})
    seed: int = field(default=0, metadata={"help": "Of the requests and of when they are due."})


class Asked(NamedTuple):
    """A request: the phase in which it was due, seconds from its beginning, milliseconds, and what failed."""

    phase: str
    due: float
    took_ms: float
    failure: str = ""


class Server:
    """An embedded Triton that can be ended and started again at the same ports."""

    def __init__(self, repository: str, log: Path) -> None:
        self._repository, self._log = repository, log
        self.ports = free_ports("http", "grpc", "metrics")
        self._stack = ExitStack()
        self.child = self._start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.child.process.pid)
        return [process, *process.children(recursive=True)]

    def _start(self) -> Child:
        return self._stack.enter_context(started(triton(self._repository, self.ports), self._log))

    def wait(self) -> None:
        self.child.wait_until(lambda: healthy(self.ports["http"]))

    def end(self, number: signal.Signals) -> None:
        """SIGKILL reaches all of its processes at once, SIGTERM the command, as Kubernetes does it."""
        for process in self.family if number == signal.SIGKILL else self.family[:1]:
            process.send_signal(number)
        self.child.process.wait()

    def start_again(self) -> None:
        self.child = self._start()
        self.wait()

    def close(self) -> None:
        self._stack.close()


@contextmanager
def slowed(server: Server, burners: int) -> Iterator[None]:
    """The server's threads get what so many busy processes leave them of one core."""
    core, before = max(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    try:
        for process in busy:
            os.sched_setaffinity(process.pid, {core})
        _pin(server, {core})
        yield
    finally:
        _pin(server, before)
        for process in busy:
            process.kill()
            process.wait()


def _pin(server: Server, cores: set[int]) -> None:
    for thread in (thread.id for process in server.family for thread in process.threads()):
        os.sched_setaffinity(thread, cores)


class Load:
    """Requests at their times, in phases. Those of a phase are all answered before the next one begins."""

    def __init__(self, client: AsyncRankingClient, arguments: FleetArguments) -> None:
        self._client, self._arguments = client, arguments
        self._requests = requests_of(arguments)
        self._phases = itertools.count(arguments.seed)
        self.asked: list[Asked] = []

    async def phase(self, name: str, *, counts: bool = True, least_s: float = 0.0) -> list[Asked]:
        begin, asked = time.perf_counter(), list[Asked]()
        seconds = max(self._arguments.seconds, least_s)
        tasks = []
        for due in arrivals("poisson", self._arguments.rate, seconds, next(self._phases)):
            await asyncio.sleep(begin + due - time.perf_counter())
            tasks.append(asyncio.create_task(self._ask(name, begin, due, asked)))
        await asyncio.gather(*tasks)
        self.asked += asked if counts else []
        return asked

    async def _ask(self, name: str, begin: float, due: float, asked: list[Asked]) -> None:
        request, failure = next(self._requests), ""
        try:
            await self._client.rank(request.query, request.documents)
        except RankingError as error:
            failure = str(error)
        asked.append(Asked(name, due, 1000 * (time.perf_counter() - begin - due), failure))


def requests_of(arguments: FleetArguments) -> Iterator[Request]:
    """Raises FlagError for a flag that makes no sense."""
    for name, least in {"rate": 0, "seconds": PHASE_LEAST_S, "burners": 0}.items():
        if not least < getattr(arguments, name) < 1e6:
            raise FlagError(f"--{name} {getattr(arguments, name):g}: a number above {least:g} is needed")
    try:
        counts = Counts.parse(arguments.documents)
    except ValueError as error:
        raise FlagError(f"--documents {error}") from error
    return traffic(read_groups(Path(arguments.queries)), counts, arguments.seed)


async def drive(arguments: FleetArguments, servers: Sequence[Server]) -> list[Asked]:
    """All phases; the servers are as before after each of them."""
    urls = [server.url for server in servers]
    async with AsyncRankingClient(urls, hedge=arguments.hedge) as client:
        load = Load(client, arguments)
        await load.phase("warm-up", counts=False)
        await load.phase(STEADY)
        await asyncio.gather(load.phase(KILLED), asyncio.to_thread(servers[0].end, signal.SIGKILL))
        await asyncio.to_thread(servers[0].start_again)
        with slowed(servers[1], arguments.burners):
            await load.phase(SLOW)
        await load.phase("rest", counts=False)
        await asyncio.gather(load.phase(REPLACED), asyncio.to_thread(_replace, servers))
        return load.asked


def _replace(servers: Sequence[Server]) -> None:
    """One after the other, as a rolling update does."""
    for server in servers:
        server.end(signal.SIGTERM)
        server.start_again()


@dataclass(frozen=True)
class Felt:
    """A phase as its callers felt it; ``later_ms`` is the p99 from BACK_S after its beginning on, or that of all."""

    phase: str
    requests: int
    failed: int
    latency: Percentiles
    worst_second_ms: float
    later_ms: float
    limit_ms: float

    def good(self) -> bool:
        return not self.failed and (self.phase == REPLACED or self.later_ms <= self.limit_ms)


def report(asked: Sequence[Asked]) -> list[Felt]:
    phases = {name: [one for one in asked if one.phase == name] for name in (STEADY, KILLED, SLOW, REPLACED)}
    steady_ms = _percentiles(phases[STEADY]).p99
    limit_ms = max(TIMES * steady_ms, steady_ms + MORE_MS)
    return [_felt(name, each, limit_ms) for name, each in phases.items()]


def _felt(phase: str, asked: Sequence[Asked], limit_ms: float) -> Felt:
    """Seconds are those in which requests were due."""
    seconds = [[one for one in asked if int(one.due) == second] for second in {int(one.due) for one in asked}]
    later = [one for one in asked if one.due >= BACK_S]
    return Felt(
        phase=phase,
        requests=len(asked),
        failed=sum(bool(one.failure) for one in asked),
        latency=_percentiles(asked),
        worst_second_ms=max(_percentiles(second).p99 for second in seconds),
        later_ms=_percentiles(later or asked).p99,
        limit_ms=limit_ms,
    )


def _percentiles(asked: Sequence[Asked]) -> Percentiles:
    found = Percentiles.of([one.took_ms for one in asked])
    assert found
    return found


def table(phases: Sequence[Felt]) -> Table:
    later = f"p99 ms from {BACK_S:g} s on"
    headings = ("phase", "requests", "failed", "p50 ms", "p99 ms", "worst second's p99 ms", later)
    shown = table_of(f"{SERVERS} servers, one client", headings, left=headings[:1])
    for one in phases:
        times = [f"{value:.0f}" for value in (one.latency.p50, one.latency.p99, one.worst_second_ms, one.later_ms)]
        shown.add_row(one.phase, str(one.requests), str(one.failed), *times)
    return shown


@command
def main(argv: Sequence[str] | None = None) -> int:
    (arguments,) = parse(argv, FleetArguments)
    requests_of(arguments)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, ExitStack() as stack:
        servers = []
        for number in range(SERVERS):
            servers.append(Server(arguments.model_repository, Path(folder) / f"log-{number}"))
            stack.callback(servers[-1].close)
        for server in servers:
            server.wait()
        asked = asyncio.run(drive(arguments, servers))
    phases = report(asked)
    show(table(phases))
    for failure in sorted({one.failure for one in asked if one.failure}):
        print(f"failed: {failure}")
    return 0 if all(one.good() for one in phases) else 1


if __name__ == "__main__":
    sys.exit(main())
