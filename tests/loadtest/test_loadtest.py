"""Locust against a running server, as people start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest._traffic import ANSWER_BYTES
from tests import ROOT
from tests.support.checkpoints import write_groups
from tests.support.odd_servers import OddServer, odd_server
from tests.support.servers import STOP_S, Server, ports

LOCUST = [str(Path(sys.executable).with_name("locust")), "-f", "loadtest/"]
NOTHING = "error: no request was sent"


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("load") / "queries.jsonl", queries=5, documents=7)


def locust(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LOCUST, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, timeout=600)


def locust_that_sends(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    """A closed loop of some seconds; of more on a machine that was too busy to send anything in them."""
    for seconds in (2, 8, 32):
        result = locust("--headless", "-u", "4", "-r", "4", "-t", f"{seconds}s", *flags)
        if NOTHING not in result.stderr:
            return result
        assert result.returncode == 1
    raise AssertionError(result.stderr)


def test_headless_ends_by_itself_with_exit_code_0(server: Server, queries: Path, tmp_path: Path) -> None:
    result = locust_that_sends("--host", server.url, "--queries", queries, "--json-file", tmp_path / "statistics")
    assert result.returncode == 0, result.stderr
    (statistics,) = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["num_failures"] == 0
    assert statistics["total_content_length"] == 7 * ANSWER_BYTES * statistics["num_requests"] > 0
    assert int(re.search(r"^(\d+) documents/s$", result.stderr, flags=re.MULTILINE)[1]) > 0  # type: ignore[index]


def test_documents_per_request_can_be_set(server: Server, queries: Path, tmp_path: Path) -> None:
    options = ["--host", server.url, "--documents", "100", "--json-file", str(tmp_path / "statistics")]
    assert locust_that_sends("--queries", queries, *options).returncode == 0
    (statistics,) = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["total_content_length"] == 100 * ANSWER_BYTES * statistics["num_requests"] > 0


def test_failures_are_counted_and_change_the_exit_code(queries: Path) -> None:
    result = locust_that_sends("--host", f"127.0.0.1:{ports()['grpc']}", "--queries", queries)
    assert result.returncode == 1
    assert "no server answers at" in result.stderr


def test_a_closed_loop_that_sent_nothing_says_so_and_fails(queries: Path) -> None:
    """The server lets the users wait for its limit until the run is over."""
    over = threading.Event()

    class Waiting(OddServer):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
            over.wait(60)
            return super().ModelConfig(request, context)

    with odd_server(Waiting(np.arange)) as url:
        at = ["--host", url, "--timeout", "4"]
        result = locust("--headless", "-u", "1", "-t", "1s", "--queries", queries, *at)
        over.set()
    assert result.returncode == 1
    assert NOTHING in result.stderr


@pytest.mark.parametrize("flags", [["--rate", "0.001"], ["--slo-p99-ms", "10", "--lowest-rate", "0.001"]])
def test_an_open_loop_that_sent_nothing_says_so_and_fails(queries: Path, flags: list[str]) -> None:
    more = ["--headless", "-t", "1s", "--warm-up", "0", "--tries", "1", "--queries", str(queries)]
    with odd_server(OddServer(np.arange)) as url:
        result = locust(*more, "--host", url, *flags)
    assert result.returncode == 1
    assert "no request was due" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: cannot be read: No such file or directory"),
        ("", "{path}: no queries in this file"),
        ('{"query": "q", "documents": []}', "{path}:1: query '1': 'documents' must be a list"),
        ('{"query": "q"}', "{path}:1: query '1': 'documents' must be a list"),
        ("{oops", "{path}:1: not JSON"),
    ],
)
def test_bad_queries_are_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "queries.jsonl"
    if content is not None:
        path.write_text(content)
    result = locust("--headless", "--queries", path)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "locust.main: Starting" not in line]
    assert line.startswith(f"error: {message.format(path=path)}")


@pytest.fixture
def page(server: Server, queries: Path) -> Iterator[str]:
    port = ports()["http"]
    flags = ["--host", server.url, "--queries", str(queries), "--web-host", "127.0.0.1", "--web-port", str(port)]
    process = subprocess.Popen([*LOCUST, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # SIGINT is ignored by what a shell has started in the background
        assert process.wait(STOP_S) == 0


def test_the_web_page_starts_users_and_shows_their_requests(page: str) -> None:
    assert b"Locust" in _get(page)
    started = urllib.parse.urlencode({"user_count": 2, "spawn_rate": 2}).encode()
    with urllib.request.urlopen(f"{page}/swarm", data=started, timeout=60) as answer:
        assert json.load(answer)["success"]
    deadline = time.monotonic() + 180
    while (statistics := _statistics(page))["num_requests"] < 10:
        assert time.monotonic() < deadline, statistics
        time.sleep(0.2)
    assert statistics["num_failures"] == 0


def _get(url: str, patience_s: float = 180) -> bytes:
    """The page, as soon as there is one."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                content: bytes = answer.read()
            return content
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _statistics(page: str) -> dict[str, Any]:
    """The line of all requests together."""
    lines: list[dict[str, Any]] = json.loads(_get(f"{page}/stats/requests"))["stats"]
    return next(line for line in lines if line["name"] == "Aggregated")
