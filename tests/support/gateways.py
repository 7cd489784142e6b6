"""Gateways for tests: real processes in front of a real server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import eventually

if TYPE_CHECKING:
    import httpx

LISTENING = re.compile(r"^http://\S+", re.MULTILINE)
STOP_S, PATIENCE_S = 60, 120
ASKED: dict[str, Any] = {"query": "garden bridge", "documents": ["river", "bridge"]}
TEI_ASKED: dict[str, Any] = {"query": "garden bridge", "texts": ["river", "bridge"]}


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
    eventually(lambda: process.poll() is not None or LISTENING.search(log.read_text()))
    found = LISTENING.search(log.read_text())
    assert found, log.read_text()
    return found[0]


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
        return text


def refusal(answer: httpx.Response, status: int) -> str:
    """The message, in the format of the API that was asked."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    if answer.url.path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert set(body) == {"message"}
    return body["message"]
