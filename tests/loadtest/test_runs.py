"""Open loops, searches and reports against a running server, as people start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loadtest.capacity import __main__ as capacity
from tests import ROOT
from tests.support.checkpoints import write_groups
from tests.support.relay import Relay
from tests.support.servers import Server
from tests.support.waiting import eventually

LOCUST = [str(Path(sys.executable).with_name("locust")), "-f", "loadtest/", "--headless", "--only-summary"]
STALL_S = 4.0


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("load") / "queries.jsonl", queries=5, documents=7)


class Load:
    """Locust on the server, with its report in ``directory``."""

    def __init__(self, server: Server, queries: Path, directory: Path, host: str = "") -> None:
        self.directory, self.host = directory, host or server.url
        self._flags = ["--host", self.host, "--queries", queries]

    def start(self, *flags: object) -> subprocess.Popen[str]:
        command = [*LOCUST, *map(str, self._flags), *map(str, flags), "--report", str(self.directory)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str]) -> str:
        try:
            return process.communicate(timeout=300)[1]
        finally:
            process.kill()

    def run(self, *flags: object) -> str:
        process = self.start(*flags)
        said = self.end(process)
        assert process.returncode == 0, said
        return said

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "report.json").read_text())
        return found

    @property
    def point(self) -> dict[str, Any]:
        (found,) = self.report["points"]
        return dict(found)


@pytest.fixture
def load(server: Server, queries: Path, tmp_path: Path) -> Load:
    return Load(server, queries, tmp_path / "report")


def test_an_open_loop_sends_what_was_scheduled_and_reports_it(load: Load) -> None:
    said = load.run("--rate", 40, "-t", "2s", "--warm-up", 0.3, "--arrivals", "constant", "--documents", "3:0.5,9:0.5")
    point = load.point
    assert "open loop at 40 requests/s" in said
    assert (point["offered"], point["requests"], point["failed"]) == (40, 80, 0)
    assert 0 < point["achieved"] <= 40
    assert point["latency_ms"]["p50"] >= point["service_ms"]["p50"] > 0
    assert 3 * 5 < point["response_bytes"] < 9 * 5
    assert point["request_bytes"] > point["response_bytes"]
    server = {times["model"]: times for times in point["server"]}
    # Those of the warm-up that were answered after it count here too.
    assert {"ranker", "tokenizer", "student"} <= set(server)
    assert 80 <= server["ranker"]["requests"] <= 92
    assert server["tokenizer"]["compute_ms"] > 0
    assert sorted(path.name for path in load.directory.iterdir()) == ["report.html", "report.json"]
    page = (load.directory / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "Open loop at 40 requests/s" in page
    assert f"{load.report['surroundings'][load.host]}" in page and "triton 2." in page
    assert not [mark for mark in ("<script", "<link", "src=", "@import") if mark in page]  # it needs nothing else


def test_the_search_finds_confirms_and_reports(load: Load) -> None:
    limits = ["--lowest-rate", 20, "--highest-rate", 40, "--slo-p99-ms", 20_000]
    said = load.run(*limits, "-t", "1s", "--warm-up", 0.2)
    report = load.report
    assert report["found"] == 40
    assert [(point["stage"], point["rate"]) for point in report["points"]] == [
        ("step", 20), ("step", 40), ("confirmation", 40),
    ]  # fmt: skip
    assert all(point["verdict"]["holds"] for point in report["points"])
    assert [point["seconds"] for point in report["points"]] == [1, 1, 3]
    assert "highest rate that holds p99 within 20000 ms with at most 0.10% failed: 40 requests/s" in said
    assert (load.directory / "report.html").read_text().count("<svg") == 4
    flags = ["--rate", "100", "--limit_ms", "20000"]
    assert capacity.main([str(load.directory / "report.json"), *flags]) == 0  # it reads what is written here


def test_ctrl_c_leaves_a_report_of_what_there_was(load: Load, server: Server) -> None:
    before = server.metrics("nv_inference_request_success")
    process = load.start("--rate", 40, "-t", "600s", "--warm-up", 0)
    eventually(lambda: server.metrics("nv_inference_request_success") > before + 100)
    process.send_signal(signal.SIGINT)
    said = load.end(process)
    assert process.returncode == 0, said
    point = load.point
    assert point["interrupted"]
    assert 0 < point["answered"] == point["requests"]
    assert "The run was stopped before its end" in " ".join(load.report["notes"])


def test_a_stall_is_seen_by_all_who_come_in_an_open_loop_and_by_each_user_once_in_a_closed_one(
    server: Server, queries: Path, tmp_path: Path
) -> None:
    """At r requests a second, those due in the first half of a stall of s seconds wait at least s / 2: about
    r * s / 2 of them, and more while the server catches up. Of n users who wait for answers each sees one."""
    flags = {"open": ["--rate", 20, "--warm-up", 0], "closed": ["-u", 2, "-r", 2]}
    with ExitStack() as running:
        relays = {name: running.enter_context(Relay(server.url)) for name in flags}
        loads = {name: Load(server, queries, tmp_path / name, relay.url) for name, relay in relays.items()}
        for name, load in loads.items():
            process = load.start(*flags[name])
            running.callback(load.end, process)
            running.callback(process.send_signal, signal.SIGINT)
        for relay in relays.values():
            _wait_for_traffic(relay)
        with relays["open"].stalled(), relays["closed"].stalled():
            time.sleep(STALL_S)
        for relay in relays.values():
            _wait_for_traffic(relay)
    half = 1000 * STALL_S / 2
    slow = {name: dict(load.point["slower_than_ms"])[half] for name, load in loads.items()}
    for load in loads.values():
        assert load.point["failed"] == 0, load.point["failures"]
    assert slow["open"] > 10  # of the 40 that theory says
    assert 1 <= slow["closed"] < slow["open"]  # a busy machine may make one more slow


def _wait_for_traffic(relay: Relay) -> None:
    """Wait until some thirty requests have passed."""
    before = relay.passed
    eventually(lambda: relay.passed > before + 30_000)
