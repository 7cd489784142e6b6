"""Gateways for tests: real processes in front of a real server."""

from __future__ import annotations

import http.client
import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.children import Child, started
from tests.support.servers import metric

if TYPE_CHECKING:
    import httpx

LISTENING = re.compile(r"^http://\S+", re.MULTILINE)
STOP_S, PATIENCE_S = 120, 180
ASKED: dict[str, Any] = {"query": "garden bridge", "documents": ["river", "bridge"]}
TEI_ASKED: dict[str, Any] = {"query": "garden bridge", "texts": ["river", "bridge"]}


@dataclass(frozen=True)
class Gateway(Child):
    """Answers at ``url``."""

    url: str

    def metrics(self, name: str, **labels: str) -> float:
        return metric(f"{self.url}/metrics", name, **labels)


@contextmanager
def gateway_running(log: Path, *flags: str) -> Iterator[Gateway]:
    """On a free port; it ends by SIGTERM, with exit code 0."""
    with started([sys.executable, "-m", "client.gateway", "--port", "0", *flags], log) as child:
        child.wait_until(lambda: LISTENING.search(log.read_text()) is not None)
        gateway = Gateway(child.process, log, LISTENING.findall(log.read_text())[0])
        with urllib.request.urlopen(f"{gateway.url}/v1/models"):  # the port listens: it answers once it can
            pass
        yield gateway
        child.process.terminate()
        assert child.process.wait(STOP_S) == 0, log.read_text()


@contextmanager
def asking(gateway: Gateway, route: str, asked: dict[str, Any]) -> Iterator[None]:
    """A caller that has sent its request, and leaves at the end of the block."""
    with closing(http.client.HTTPConnection(gateway.url.removeprefix("http://"))) as connection:
        connection.request("POST", route, json.dumps(asked), {"Content-Type": "application/json"})
        yield


def refusal(answer: httpx.Response, status: int) -> str:
    """The message, in the format of the API that was asked."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    if answer.url.path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert set(body) == {"message"}
    return body["message"]
