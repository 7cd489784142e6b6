"""Servers as child processes: started, waited for, and stopped. Standard library only."""

from __future__ import annotations

import ctypes
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_S, STOP_S = 180, 40
TRITON = (sys.executable, "-m", "embedded_triton")  # the command tritonserver gives way to a real one on PATH
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


class StartError(OSError):
    """A server did not start, or did not come back."""

    exit_code = 2  # a command ends with one line


@dataclass(frozen=True)
class Child:
    """A process and the file that has all of its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises StartError with the last line of the log if the process ends or takes longer than READY_S."""
        deadline = time.monotonic() + READY_S
        while not ready():
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
                what = f"is not ready after {READY_S} s" if code is None else f"ended with {code}"
                raise StartError(f"the server {what}: {last} (all in {self.log})")
            time.sleep(0.1)


@contextmanager
def started(
    command: Sequence[str | Path], log: Path, cwd: Path | None = None, before: Callable[[], None] | None = None
) -> Iterator[Child]:
    """The process, which may not be ready yet. It is stopped at the end of the block if it still runs then.

    ``before`` is called in the process before it becomes the command.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, preexec_fn=before)
    try:
        yield Child(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when the thread that started it ends, even by SIGKILL."""
    LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextmanager
def serving(repository: str | Path, log: Path, *flags: str) -> Iterator[tuple[Child, dict[str, int]]]:
    """The embedded Triton on free ports once it is ready, and its ports by endpoint."""
    ports = free_ports("http", "grpc", "metrics")
    with started([*triton(repository, ports), "--verbose", *flags], log) as child:
        child.wait_until(lambda: healthy(ports["http"]))
        yield child, ports


def triton(repository: str | Path, ports: dict[str, int]) -> list[str]:
    """The command of the embedded Triton that serves ``repository`` on a processor. ``ports`` are by endpoint."""
    command = [*TRITON, f"--model-repository={repository}", "--model-config-name=cpu"]
    return command + [f"--{endpoint}-port={port}" for endpoint, port in ports.items()]


def healthy(port: int, path: str = "/v2/health/ready") -> bool:
    """Ask a server on this machine whether it is ready. The path is Triton's."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(*names: str) -> dict[str, int]:
    """A port for each name, which no other process is given as long as this one lives: it stays bound here.

    A server may still listen on it, since servers set SO_REUSEADDR and this process does not listen. Of a port that
    was free only when it was looked for, another server could be given the same number while the first one loads.
    """
    ports = {}
    for name in names:
        probe = socket.socket()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        ports[name] = int(probe.getsockname()[1])
        probe.detach()  # stays open until the process ends
    return ports
