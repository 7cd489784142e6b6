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
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.children import Child, free_ports, healthy, started, triton
from bench.phases import KILLED, REPLACED, SLOW, STEADY, Asked, report, table
from bench.report import show
from client import AsyncRankingClient, RankingError
from client.command import command
from loadtest._schedule import arrivals
from loadtest._traffic import Counts, Request, read_groups, traffic
from trainer.command import FlagError, parse

SERVERS, PHASE_LEAST_S = 3, 7.0


@dataclass
class FleetArguments:
    """The servers, the load and the time of each phase."""

    model_repository: str = field(default="model_repository", metadata={"help": "Served on the processor."})
    queries: str = field(default="runs/demo/collection/test.jsonl", metadata={"help": "JSON lines, as for loadtest."})
    documents: str = field(default="10", metadata={"help": "Of a request, as for loadtest."})
    rate: float = field(default=20.0, metadata={"help": "Requests a second, to all servers together."})
    seconds: float = field(default=15.0, metadata={"help": "Of each phase, at the least."})
    burners: int = field(default=8, metadata={"help": "Processes that share a core with the slow server."})
    hedge: float | None = field(default=None, metadata={"help": "The client's hedge, a share such as 0.95."})
    seed: int = field(default=0, metadata={"help": "Of the requests and of when they are due."})


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
        for process in busy:
            process.kill()
            process.wait()
        _pin(server, before)


def _pin(server: Server, cores: set[int]) -> None:
    for thread in (thread.id for process in server.family for thread in process.threads()):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, cores)


class Load:
    """Requests at their times, in phases. Those of a phase are all answered before the next one begins."""

    def __init__(self, client: AsyncRankingClient, arguments: FleetArguments) -> None:
        self._client, self._arguments = client, arguments
        self._requests = requests_of(arguments)
        self._phases = itertools.count(arguments.seed)
        self.asked: list[Asked] = []

    async def phase(self, name: str, *, counts: bool = True, during: Awaitable[None] | None = None) -> None:
        """A phase lasts until ``during`` is done, and not less than its time."""
        begin, asked = time.perf_counter(), list[Asked]()
        done = asyncio.ensure_future(during or asyncio.sleep(0))
        tasks = []
        for due in arrivals("poisson", self._arguments.rate, math.inf, next(self._phases)):
            if due >= self._arguments.seconds and done.done():
                break
            await asyncio.sleep(begin + due - time.perf_counter())
            tasks.append(asyncio.create_task(self._ask(name, begin, due, asked)))
        await asyncio.gather(done, *tasks)
        self.asked += asked if counts else []

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
        await load.phase(KILLED, during=asyncio.to_thread(servers[0].end, signal.SIGKILL))
        await asyncio.to_thread(servers[0].start_again)
        with slowed(servers[1], arguments.burners):
            await load.phase(SLOW)
        await load.phase("rest", counts=False)
        await load.phase(REPLACED, during=asyncio.to_thread(_replace, servers))
        return load.asked


def _replace(servers: Sequence[Server]) -> None:
    """One after the other, as a rolling update does."""
    for server in servers:
        server.end(signal.SIGTERM)
        server.start_again()


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
    show(table(f"{SERVERS} servers, one client", phases))
    for failure in sorted({one.failure for one in asked if one.failure}):
        print(f"failed: {failure}")
    return 0 if all(one.good() for one in phases) else 1


if __name__ == "__main__":
    sys.exit(main())
