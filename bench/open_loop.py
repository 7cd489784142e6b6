"""Locust's open loop beside an independent one, in turn on the same server: do they measure the same?

    python -m bench.open_loop --host localhost:8001 --queries queries.jsonl --documents 100 --rate 20 --rounds 5

The other one is a plain asyncio loop over tritonclient: the same requests are due at the same times, and all else
(client, event loop, clock, percentiles) is its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc.aio as grpc
from rich.table import Table
from tritonclient.utils import InferenceServerException

from bench.machine import described, machine, show
from bench.spread import Spread, ratios
from client.files import appears_whole
from loadtest._schedule import arrivals
from loadtest._traffic import Counts, Request, Traffic, read_groups
from trainer.command import command, parse
from trainer.data.records import DataError

ROOT = Path(__file__).parent.parent
LARGEST = 2**31 - 1


@dataclass
class OpenLoopArguments:
    """What is sent where, and how often both measure."""

    queries: str = field(metadata={"help": "JSONL of queries with documents."})
    host: str = field(default="localhost:8001", metadata={"help": "host:port of the server's gRPC."})
    documents: str = field(default="100", metadata={"help": "Per request, as --documents of the load test."})
    rate: float = field(default=20.0, metadata={"help": "Requests a second (Poisson)."})
    seconds: float = field(default=20.0, metadata={"help": "Of each measurement, after the warm-up."})
    warm_up: float = field(default=2.0, metadata={"help": "Seconds before it that are not counted."})
    rounds: int = field(default=5, metadata={"help": "Each measures with both, in turns first."})
    output: str | None = field(default=None, metadata={"help": "JSON to write."})


class Measured(NamedTuple):
    """Milliseconds from when requests were due; answers a second."""

    p50: float
    p99: float
    mean: float
    achieved: float
    failed: int


class Timed(NamedTuple):
    """Seconds from the beginning."""

    due: float
    end: float
    failed: bool


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, OpenLoopArguments)
    rounds: dict[str, list[Measured]] = {"locust": [], "asyncio": []}
    for number in range(arguments.rounds):
        ways = {"locust": by_locust, "asyncio": by_asyncio}
        for name in sorted(ways, reverse=bool(number % 2)):
            rounds[name].append(ways[name](arguments, number))
            print(f"round {number + 1}, {name}: {rounds[name][-1]}", file=sys.stderr)
    agreement = {name: ratios(_column(rounds["locust"], name), _column(rounds["asyncio"], name)) for name in NAMES}
    _show(rounds, agreement, arguments)
    if arguments.output:
        found = {
            "machine": machine(0),
            "arguments": asdict(arguments),
            "rounds": {name: [one._asdict() for one in measured] for name, measured in rounds.items()},
            "locust_over_asyncio": {name: asdict(ratio) for name, ratio in agreement.items()},
        }
        with appears_whole(Path(arguments.output)) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


NAMES = ("p50", "p99", "mean", "achieved")


def _column(measured: Sequence[Measured], name: str) -> list[float]:
    return [getattr(one, name) for one in measured]


def _show(rounds: dict[str, list[Measured]], agreement: dict[str, Spread], arguments: OpenLoopArguments) -> None:
    load = f"{arguments.rate:g} requests/s of {arguments.documents} documents, {arguments.seconds:g} s"
    table = Table(title=f"{load}, {arguments.rounds} rounds, {described(machine(0))}")
    for heading in ("", "asyncio", "locust", "locust / asyncio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in NAMES:
        unit = "answers/s" if name == "achieved" else f"{name} (ms)"
        both = [str(Spread.of(_column(rounds[who], name))) for who in ("asyncio", "locust")]
        ratio = agreement[name]
        table.add_row(unit, *both, f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    show(table)


def by_locust(arguments: OpenLoopArguments, seed: int) -> Measured:
    flags = ["--rate", str(arguments.rate), "-t", f"{arguments.seconds:g}s", "--warm-up", str(arguments.warm_up)]
    same = ["--queries", arguments.queries, "--documents", arguments.documents, "--seed", str(seed)]
    point = run_locust([*flags, *same, "--host", arguments.host, "--in-flight", "100000"])
    latency = point["latency_ms"]
    return Measured(latency["p50"], latency["p99"], latency["mean"], point["achieved"], point["failed"])


def run_locust(flags: Sequence[str]) -> dict[str, Any]:
    """The single point of its report. Raises DataError with what it said."""
    with tempfile.TemporaryDirectory() as directory:
        process = start_locust(flags, Path(directory))
        return end_locust(process, Path(directory))


def start_locust(flags: Sequence[str], directory: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("locust")), "-f", "loadtest/", "--headless", "--only-summary"]
    command += [*flags, "--metrics-url", "", "--report", str(directory)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end_locust(process: subprocess.Popen[str], directory: Path) -> dict[str, Any]:
    _, said = process.communicate()
    report = directory / "report.json"
    if not report.exists():
        raise DataError(f"locust ended with {process.returncode}: {said.strip()[-1000:]}")
    point: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["points"][0]
    return point


def by_asyncio(arguments: OpenLoopArguments, seed: int) -> Measured:
    traffic = Traffic(_groups(arguments.queries), Counts.parse(arguments.documents), seed)
    dues = arrivals("poisson", arguments.rate, arguments.warm_up + arguments.seconds, seed)
    schedule = [(due - arguments.warm_up, request) for due, request in zip(dues, traffic, strict=False)]
    timed = [one for one in asyncio.run(_open_loop(arguments.host, schedule)) if one.due >= 0]
    answered = [one for one in timed if not one.failed]
    if not answered:
        raise DataError(f"{arguments.host} answered nothing")
    latencies = 1000 * np.array([one.end - one.due for one in answered])
    p50, p99 = np.percentile(latencies, [50, 99], method="inverted_cdf")
    achieved = len(answered) / max(arguments.seconds, *(one.end for one in answered))
    return Measured(float(p50), float(p99), float(latencies.mean()), achieved, len(timed) - len(answered))


def _groups(path: str) -> list[Request]:
    try:
        return read_groups(Path(path))
    except ValueError as error:
        raise DataError(str(error)) from error


async def _open_loop(host: str, schedule: Sequence[tuple[float, Request]]) -> list[Timed]:
    limits = [("grpc.max_send_message_length", LARGEST), ("grpc.max_receive_message_length", LARGEST)]
    async with grpc.InferenceServerClient(host, channel_args=limits) as client:
        begin = time.perf_counter() - schedule[0][0] + 0.1

        async def ask(due: float, request: Request) -> Timed:
            try:
                result = await client.infer("ranker", _inputs(request), client_timeout=30.0)
                failed = len(result.as_numpy("SCORES")) != len(request.documents)
            except InferenceServerException:
                failed = True
            return Timed(due, time.perf_counter() - begin, failed)

        tasks = []
        for due, request in schedule:
            await asyncio.sleep(begin + due - time.perf_counter())
            tasks.append(asyncio.create_task(ask(due, request)))
        return list(await asyncio.gather(*tasks))


def _inputs(request: Request) -> list[Any]:
    columns = {
        "QUERY": [request.query],
        "TITLES": [document.title for document in request.documents],
        "SUMMARIES": [document.summary for document in request.documents],
    }
    found = []
    for name, texts in columns.items():
        found.append(grpc.InferInput(name, [len(texts)], "BYTES"))
        found[-1].set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return found


if __name__ == "__main__":
    sys.exit(main())
