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

import grpc
import numpy as np
import pytest

from loadtest._traffic import ANSWER_BYTES
from tests import ROOT
from tests.support.checkpoints import write_groups
from tests.support.odd_servers import SCORER, OddServer, odd_server, refusing
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
    with odd_server(OddServer(act=refusing(grpc.StatusCode.INTERNAL, "broken"))) as url:
        result = locust_that_sends("--host", url, "--queries", queries)
    assert result.returncode == 1
    assert "INTERNAL: broken" in result.stderr


def test_a_closed_loop_that_sent_nothing_says_so_and_fails(queries: Path, tmp_path: Path) -> None:
    """The server tells its limit at the start, and lets the users wait for it until the run is over."""
    over, told = threading.Event(), [SCORER, "ranker"]

    class Waiting(OddServer):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
            if request.name in told:
                told.remove(request.name)
            else:
                over.wait(600)
            return super().ModelConfig(request, context)

    with odd_server(Waiting()) as url:
        flags = ["--queries", queries, "--host", url, "--timeout", 20, "--report", tmp_path]
        result = locust("--headless", "-u", 1, "-t", "1s", *flags)
        over.set()
    assert result.returncode == 1
    assert NOTHING in result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 1


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


GOOD = '{"query": "river", "documents": ["bridge"]}'
RATE, USERS, PAGE = ["--headless", "--rate", 10], ["--headless", "-u", 2, "-t", "2s"], ["--web-port", 0]


@pytest.mark.parametrize(
    ("content", "host", "flags", "message"),
    [
        (None, "127.0.0.1:9", RATE, "{path}: cannot be read: No such file or directory"),
        ("{oops", "127.0.0.1:9", RATE, "{path}:1: not JSON"),
        (GOOD, "127.0.0.1:9", RATE, "no server answers at 127.0.0.1:9: start it"),
        (GOOD, "127.0.0.1:9", USERS, "no server answers at 127.0.0.1:9: start it"),
        (GOOD, "http://127.0.0.1:9", PAGE, "servers: http://127.0.0.1:9 is a URL: name host:port of a gRPC port"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_line(
    tmp_path: Path, content: str | None, host: str, flags: list[object], message: str
) -> None:
    path = tmp_path / "queries.jsonl"
    if content is not None:
        path.write_text(content)
    result = locust(*flags, "--host", host, "--queries", path)
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


def test_the_web_page_starts_users_with_our_flags_and_shows_requests_and_documents(page: str) -> None:
    form = {"user_count": "2", "spawn_rate": "2"}
    assert all(f'"{name}"'.encode() in _get(page) for name in ("queries", "documents", "seed", "timeout"))
    for wrong, message in ({"documents": "many"}, "'many' is none of"), ({"timeout": "0"}, "above 0"):
        answer = json.loads(_get(f"{page}/swarm", urllib.parse.urlencode(form | wrong).encode()))
        assert not answer["success"] and message in answer["message"]
    assert json.loads(_get(f"{page}/swarm", urllib.parse.urlencode(form | {"documents": "3"}).encode()))["success"]
    eventually(lambda: _statistics(page)["num_requests"] >= 10)
    shown = _statistics(page)
    assert shown["num_failures"] == 0
    assert shown["avg_content_length"] == 3 * ANSWER_BYTES
    assert shown["documents"] >= 30


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
    answer = json.loads(_get(f"{page}/stats/requests"))
    tables: list[list[dict[str, Any]]] = [answer["stats"], answer["extended_stats"][0]["data"]]
    requests, documents = (next(line for line in table if line["name"] == "Aggregated") for table in tables)
    return requests | documents
