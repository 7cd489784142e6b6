"""Locust against a running server, as people start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
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
from tests.support.waiting import eventually

LOCUST = [str(Path(sys.executable).with_name("locust")), "-f", "loadtest/"]
NOTHING = "error: no request was sent"


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("load") / "queries.jsonl", queries=5, documents=7)


def locust(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LOCUST, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, timeout=600)


def locust_that_sends(*flags: object) -> subprocess.CompletedProcess[str]:
    """A closed loop of some seconds; of more on a machine that was too busy to send anything in them."""
    for seconds in (2, 8, 32):
        result = locust("--headless", "-u", "4", "-r", "4", "-t", f"{seconds}s", *flags)
        if NOTHING not in result.stderr:
            return result
        assert result.returncode == 1
    raise AssertionError(result.stderr)


def test_headless_ends_by_itself_with_exit_code_0(server: Server, queries: Path, tmp_path: Path) -> None:
    flags = ["--host", server.url, "--queries", queries, "--documents", 10, "--json-file", tmp_path / "statistics"]
    result = locust_that_sends(*flags)
    assert result.returncode == 0, result.stderr
    (statistics,) = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["num_failures"] == 0
    assert statistics["total_content_length"] == 10 * ANSWER_BYTES * statistics["num_requests"] > 0
    assert int(re.search(r"^(\d+) documents/s$", result.stderr, flags=re.MULTILINE)[1]) > 0  # type: ignore[index]


def test_failures_are_counted_and_change_the_exit_code(queries: Path) -> None:
    result = locust_that_sends("--host", f"127.0.0.1:{ports()['grpc']}", "--queries", queries)
    assert result.returncode == 1
    assert "no server answers at" in result.stderr


def test_a_closed_loop_that_sent_nothing_says_so_and_fails(queries: Path) -> None:
    """The server lets the users wait for its limit until the run is over."""
    over = threading.Event()

    class Waiting(OddServer):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
            over.wait(600)
            return super().ModelConfig(request, context)

    with odd_server(Waiting()) as url:
        result = locust("--headless", "-u", 1, "-t", "1s", "--queries", queries, "--host", url, "--timeout", 2)
        over.set()
    assert result.returncode == 1
    assert NOTHING in result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rate", 0.001], "no request was due"),
        (["--slo-p99-ms", 10, "--lowest-rate", 0.001], "not even 0.001 requests/s hold p99 within 10 ms with at most"),
    ],
)
def test_an_open_loop_that_sent_nothing_says_so_and_fails(
    queries: Path, tmp_path: Path, flags: list[object], said: str
) -> None:
    more = ["--headless", "-t", "1s", "--warm-up", 0, "--tries", 1, "--queries", queries, "--report", tmp_path]
    with odd_server(OddServer(np.arange)) as url:
        result = locust(*more, "--host", url, *flags)
    assert result.returncode == 1
    assert said in result.stderr and "no request was due" in result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["found"], report["exit_code"]) == (None, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: cannot be read: No such file or directory"),
        ("{oops", "{path}:1: not JSON"),
        ('{"query": "river", "documents": ["bridge"]}', "no server answers at 127.0.0.1:9: start it"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "queries.jsonl"
    if content is not None:
        path.write_text(content)
    result = locust("--headless", "--rate", 10, "--host", "127.0.0.1:9", "--queries", path)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "locust.main: Starting" not in line]
    assert line.startswith(f"error: {message.format(path=path)}")


@pytest.fixture
def page(server: Server, queries: Path) -> Iterator[str]:
    port = ports()["http"]
    flags = ["--host", server.url, "--queries", str(queries), "--web-host", "127.0.0.1", "--web-port", str(port)]
    process = subprocess.Popen([*LOCUST, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: b"Locust" in _get(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # SIGINT is ignored by what a shell has started in the background
        assert process.wait(STOP_S) == 0


def test_the_web_page_starts_users_and_shows_their_requests(page: str) -> None:
    started = urllib.parse.urlencode({"user_count": 2, "spawn_rate": 2}).encode()
    assert json.loads(_get(f"{page}/swarm", started))["success"]
    eventually(lambda: _statistics(page)["num_requests"] >= 10)
    assert _statistics(page)["num_failures"] == 0


def _get(url: str, data: bytes | None = None) -> bytes:
    """The page; nothing while nobody listens."""
    try:
        with urllib.request.urlopen(url, data=data, timeout=60) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.URLError:
        return b""


def _statistics(page: str) -> dict[str, Any]:
    """The line of all requests together."""
    lines: list[dict[str, Any]] = json.loads(_get(f"{page}/stats/requests"))["stats"]
    return next(line for line in lines if line["name"] == "Aggregated")
