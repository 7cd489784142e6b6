"""A server as the child of its worker, so that its processor time and memory are the worker's family's."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

READY_S, STOP_S = 180, 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], ready: Callable[[], bool], directory: Path) -> Iterator[None]:
    """The command from when it is ready to the end of the block. Raises OSError with its last words if it ends."""
    log = directory / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=directory)
    try:
        _wait(process, ready, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            what = "did not start in time" if process.poll() is None else f"ended with {process.returncode}"
            raise OSError(f"the server {what}: {lines[-1].strip() if lines else 'it said nothing'} (all in {log})")
        time.sleep(0.2)
