"""The cost to the gateway of its callers: those who stand idle, those who read no answer, and one who asks.

python -m bench.callers --servers localhost:8001    # a ranking server that runs
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from bench.children import Child, StartError, started
from client.command import command

FILES, SILENT, SECONDS = 256, 300, 20.0
UNREAD, TEXTS = 25, ["river bank " * 86_000] * 16  # 15 MB
HALF_A_HEAD = b"POST /v2/rerank HTTP/1.1\r\nHost: gateway\r\n"
RUNS, REQUESTS = 7, 200


@command
def main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.callers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--servers", default="localhost:8001", help="gRPC of ranking servers, as the gateway takes it")
    servers = parser.parse_args(argv).servers
    idle(servers)
    unread(servers)
    asking(servers)


@contextmanager
def gateway(servers: str, *flags: str, files: int) -> Iterator[tuple[Child, str, int]]:
    """A gateway that may open so many files, and its host and port."""
    with tempfile.TemporaryDirectory(prefix="callers-") as folder:
        log = Path(folder) / "log"
        limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", sys.executable, "-m", "client.gateway"]
        with started([*limited, "--port", "0", "--servers", servers, *flags], log) as child:
            child.wait_until(lambda: "startup complete" in log.read_text())
            address = re.findall(r"^http://(\S+):(\d+)", log.read_text(), re.MULTILINE)[0]
            must_answer(http.client.HTTPConnection(address[0], int(address[1]), timeout=60), ["river"], servers)
            yield child, address[0], int(address[1])


def idle(servers: str) -> None:
    """Others' requests while connections stand there that send nothing, or half a head."""
    with gateway(servers, files=FILES) as (child, host, port), ExitStack() as held:
        process = psutil.Process(child.process.pid)
        for number in range(SILENT):
            with suppress(OSError):
                connection = held.enter_context(socket.create_connection((host, port), timeout=5))
                connection.sendall(HALF_A_HEAD if number % 2 else b"")
        before, begun, answered, asked = process.cpu_times(), time.monotonic(), 0, 0
        while time.monotonic() - begun < SECONDS:
            asked += 1
            with suppress(OSError, http.client.HTTPException):
                answered += ask(http.client.HTTPConnection(host, port, timeout=2), ["river"]) == 200
            time.sleep(0.5)
        after, seconds = process.cpu_times(), time.monotonic() - begun
        share = (after.user + after.system - before.user - before.system) / seconds
        print(
            f"{SILENT} idle connections, {FILES} files, {seconds:.0f} s: {answered} of {asked} requests of others "
            f"answered, {share:.1%} of a core, {child.log.stat().st_size / 1e6:.3f} MB of log",
            flush=True,
        )


def unread(servers: str) -> None:
    """The memory of the gateway while answers stand there that nobody reads."""
    with gateway(servers, "--max_concurrent", "4", files=4096) as (child, host, port), ExitStack() as held:
        process = psutil.Process(child.process.pid)
        must_answer(http.client.HTTPConnection(host, port, timeout=60), TEXTS, servers)
        before = process.memory_info().rss
        most, ends = before, threading.Event()

        def watch() -> None:
            nonlocal most
            while not ends.wait(0.05):
                most = max(most, process.memory_info().rss)

        with ExitStack() as watching:
            thread = threading.Thread(target=watch)
            thread.start()
            watching.callback(thread.join)
            watching.callback(ends.set)
            for _ in range(UNREAD):
                connection = held.enter_context(socket.create_connection((host, port), timeout=60))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                with suppress(OSError):  # a gateway that has no place closes it in the middle
                    connection.sendall(request_of(TEXTS))
                time.sleep(0.5)
        now = process.memory_info().rss
        print(
            f"{UNREAD} unread answers of 15 MB, --max_concurrent 4: {before / 1e6:.0f} MB before, "
            f"{most / 1e6:.0f} MB at most, {now / 1e6:.0f} MB at the end",
            flush=True,
        )


def asking(servers: str) -> None:
    """The gateway's own processor time for a request of 100 documents."""
    with gateway(servers, files=4096) as (child, host, port):
        process, connection = psutil.Process(child.process.pid), http.client.HTTPConnection(host, port, timeout=60)
        texts, costs = ["all that one has to know of a cheap bridge over a river"] * 100, []
        for _ in range(RUNS):
            before = process.cpu_times()
            for _ in range(REQUESTS):
                must_answer(connection, texts, servers)
            after = process.cpu_times()
            costs.append((after.user + after.system - before.user - before.system) / REQUESTS * 1e3)
        print(f"100 documents: {statistics.median(costs):.2f} ms of the gateway's processor time a request, the median "
              f"of {RUNS} runs from {min(costs):.2f} to {max(costs):.2f}")  # fmt: skip


def must_answer(connection: http.client.HTTPConnection, texts: Sequence[str], servers: str) -> None:
    """Raises StartError if the request is not answered."""
    if (status := ask(connection, texts)) != 200:
        raise StartError(f"{servers}: no ranking server answers there (the gateway says {status})")


def ask(connection: http.client.HTTPConnection, texts: Sequence[str]) -> int:
    body = json.dumps({"query": "garden bridge", "documents": texts})
    connection.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def request_of(texts: Sequence[str]) -> bytes:
    """One that asks for its documents back."""
    body = json.dumps({"query": "garden bridge", "documents": texts, "return_documents": True}).encode()
    head = f"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


if __name__ == "__main__":
    sys.exit(main())
