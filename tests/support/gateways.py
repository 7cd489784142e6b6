"""Gateways for tests: real processes in front of a real server, and a server that can be made to stall."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

START_S, STOP_S, PATIENCE_S = 180, 60, 120
ASKED: dict[str, Any] = {"query": "garden bridge", "documents": ["river", "bridge"]}
TEI_ASKED: dict[str, Any] = {"query": "garden bridge", "texts": ["river", "bridge"]}
PIECE = 65536


@dataclass(frozen=True)
class Gateway:
    """Answers at ``url``; ``log`` is all that it has said."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def metrics(self, name: str, **labels: str) -> float:
        """The sum of a metric over the labels that are not given."""
        total = 0.0
        for line in _read(f"{self.url}/metrics").splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total


@contextmanager
def gateway_running(log: Path, *flags: str) -> Iterator[Gateway]:
    """On a free port; it ends by SIGTERM, with exit code 0."""
    command = [sys.executable, "-m", "client.gateway", "--port", "0", *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        gateway = Gateway(_address(process, log), log, process)
        _read(f"{gateway.url}/v1/models")  # the port listens: it answers once it can
        yield gateway
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    ends = time.monotonic() + START_S
    while not (found := re.search(r"^http://\S+", log.read_text(), re.MULTILINE)):
        assert process.poll() is None and time.monotonic() < ends, log.read_text()
        time.sleep(0.05)
    return found[0]


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
        return text


class Passage:
    """A TCP port in front of another; while it is stalled, nothing passes, and nobody is told."""

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self._open.clear()
        yield
        self._open.set()

    def close(self) -> None:
        self._open.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # either end was closed
            while data := source.recv(PIECE):
                self._open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def refusal(answer: httpx.Response, status: int) -> str:
    """The message, in the format of the API that was asked."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    if answer.url.path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert set(body) == {"message"}
    return body["message"]


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
