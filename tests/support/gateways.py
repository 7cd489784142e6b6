"""Gateways for tests: real processes in front of a real server."""

from __future__ import annotations

import http.client
import json
import re
import ssl
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

LISTENING = re.compile(r"^https?://\S+", re.MULTILINE)
STOP_S, PATIENCE_S = 120, 180
ASKED: dict[str, Any] = {"query": "garden bridge", "documents": ["river", "bridge"]}
TEI_ASKED: dict[str, Any] = {"query": "garden bridge", "texts": ["river", "bridge"]}


@dataclass(frozen=True)
class Gateway(Child):
    """Answers at ``url``. ``examples`` is the file of that flag, if it has one."""

    url: str
    examples: Path = Path()
    tls: ssl.SSLContext | None = None

    def metrics(self, name: str, **labels: str) -> float:
        return metric(f"{self.url}/metrics", name, self.tls, **labels)


@contextmanager
def gateway_running(log: Path, *flags: str, files: int = 4096, tls: ssl.SSLContext | None = None) -> Iterator[Gateway]:
    """On a free port, with a limit of open files; it ends by SIGTERM, with exit code 0."""
    limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", sys.executable, "-m", "client.gateway"]
    with started([*limited, "--port", "0", *flags], log) as child:
        child.wait_until(lambda: LISTENING.search(log.read_text()) is not None)
        gateway = Gateway(child.process, log, LISTENING.findall(log.read_text())[0], tls=tls)
        with urllib.request.urlopen(f"{gateway.url}/v1/models", context=tls):
            pass  # the port listens: it answers once it can
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
    """The message, under the names that the clients of each API read."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    assert body.pop("error_type")
    assert body.pop("request_id") == answer.headers["X-Request-Id"]
    assert set(body) == {"message", "detail", "error"}
    (message,) = set(body.values())
    return message
