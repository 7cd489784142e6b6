"""Capacity, of a server whose curve is known: an M/M/1 queue, in which times are exponential, of mean 1/(mu - rate)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest._samples import SHARES
from loadtest.capacity import __main__ as capacity

MU, DOCUMENTS = 50.0, 20.0  # requests a second that the engine takes, and documents of each
RATES = (1.0, 10.0, 20.0, 30.0, 40.0)
LIMIT_MS = 300.0
HELD = MU - math.log(100) / (LIMIT_MS / 1000)  # the rate at which the p99 is the limit


def report(rate: float, host: str = "localhost:8001", failed: int = 0) -> dict[str, Any]:
    """The report of a load test at this rate, of very many requests."""
    mean_ms = 1000 / (MU - rate)
    times = {name: mean_ms * math.log(1 / (1 - share)) for name, share in SHARES.items()}
    point = {
        "rate": rate, "offered": rate, "seconds": 60.0, "achieved": rate, "documents_per_second": DOCUMENTS * rate,
        "answered": 1500, "failed": failed, "latency_ms": {"mean": mean_ms, **times, "max": mean_ms * math.log(1e5)},
        "generator": {"limits": []},
    }  # fmt: skip
    return {"host": host, "settings": {"arrivals": "poisson"}, "points": [point]}


@pytest.fixture
def measured(tmp_path: Path) -> list[str]:
    paths = []
    for rate in RATES:
        paths.append(tmp_path / f"{rate:g}.json")
        paths[-1].write_text(json.dumps(report(rate)))
    return [str(path) for path in paths]


@pytest.fixture
def planned(measured: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def planned(*flags: object) -> dict[str, Any]:
        argv = [*measured, "--limit_ms", LIMIT_MS, "--json", *flags]
        assert capacity.main([str(part) for part in argv]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return planned


def test_servers_are_those_of_the_formula(planned: Callable[..., dict[str, Any]]) -> None:
    found = planned("--rate", 500, "--peak", 2, "--spare", 2, "--price", 3)
    assert found["a_server"] == pytest.approx(HELD, rel=0.08)
    assert found["needed"] == math.ceil(1000 / found["a_server"]) and found["servers"] == found["needed"] + 2
    assert found["a_month"] == found["servers"] * 3 * 730
    assert found["a_million"] == pytest.approx(found["servers"] * 3 / (500 * 3600) * 1e6)
    assert found["headroom"] == pytest.approx(found["servers"] * HELD / 1000, rel=0.08)
    lost = found["moments"][-1]
    assert (lost["servers"], lost["rate"]) == (found["needed"], 1000)
    expected_ms = 1000 * math.log(100) / (MU - 1000 / lost["servers"])
    assert lost["p99_ms"] == pytest.approx(expected_ms, rel=0.15) and lost["within"] >= 0.985
    for step in found["fit"]:
        assert step["model_p99_ms"] == pytest.approx(step["p99_ms"], rel=0.2)  # of a run that began with no queue


def test_a_client_that_knows_what_is_under_way_needs_fewer_servers_and_requests_of_more_documents_more(
    planned: Callable[..., dict[str, Any]],
) -> None:
    servers = [planned("--rate", 150, *flags)["needed"] for flags in (("--clients", 1), (), ("--documents", 40))]
    assert servers == sorted({*servers})
    pooled = 150 / MU  # no number of servers below it could keep up
    assert servers[0] > pooled


def test_a_rate_that_was_not_held_is_left_out(
    planned: Callable[..., dict[str, Any]], measured: list[str], tmp_path: Path
) -> None:
    """Requests that are refused make those that are answered fast."""
    before, path = planned("--rate", 500), tmp_path / "refused.json"
    overloaded = report(RATES[1], failed=1000)
    overloaded["points"][0] |= {"rate": 120.0, "offered": 120.0}
    path.write_text(json.dumps(overloaded))
    measured.append(str(path))
    after = planned("--rate", 500)
    assert after["needed"] == before["needed"] and "left out are 120 requests/s" in after["notes"][-1]


BAD: dict[str, tuple[list[object], str]] = {
    "nothing at this rate": (["--rate", 0, "--limit_ms", 300], "--rate 0: "),
    "no such share": (["--rate", 1, "--limit_ms", 300, "--share", 1], "--share"),
    "no number": (["--rate", "nan", "--limit_ms", 300], "--rate nan: "),
    "servers owed": (["--rate", 1, "--limit_ms", 300, "--spare", -1], "--spare -1: "),
    "more clients than are simulated": (["--rate", 1, "--limit_ms", 300, "--clients", 10_001], "--clients 10001: "),
    "engines that do nothing": (["--rate", 1, "--limit_ms", 300, "--most_busy", 0.0005], "--most_busy 0.0005: "),
    "faster than idle": (["--rate", 1, "--limit_ms", 0.5], "an idle server is slower"),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_flags_are_one_line(
    flags: list[object], message: str, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert capacity.main([*measured, *map(str, flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not a report.json"),
        ("[]", "not a report.json"),
        ('{"host": 5}', "not a report.json"),
        (json.dumps(report(5.0)).replace('"achieved": 5.0', '"achieved": 0'), "not a report.json"),
        (json.dumps({"host": "a", "settings": {}, "points": []}), "no answers in an open loop"),
        (json.dumps(report(5.0, host="a:8001,b:8001")), "the curve of 1 server(s)"),
        (json.dumps(report(5.0)), "one rate is no curve"),
        (re.sub(r'"p99": [\d.]+', '"p99": null', json.dumps(report(5.0))), "not a report.json"),
    ],
)
def test_bad_reports_are_one_line_that_names_the_file(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert capacity.main([str(path), "--rate", "1", "--limit_ms", "100"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and message in line


def test_the_tables_have_the_curve_and_the_fleet(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rate", "100", "--limit_ms", "300", "--price", "2", "--documents", "60"]
    assert capacity.main([*measured, *flags]) == 0
    shown = capsys.readouterr().out
    for words in ("peak, 1 lost", "within 300 ms", "headroom: ", "cost: "):
        assert words in shown
    assert "measured with 20 documents, planned for 60" in shown
