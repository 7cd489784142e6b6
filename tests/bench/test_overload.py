"""The overload bench on a real server: every request that was due has an outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.overload import __main__ as overload
from bench.overload.load import ANSWERED, REFUSED, UNSENT
from tests.support.checkpoints import write_groups


def test_every_rate_has_a_line_and_every_request_an_outcome(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overload, "STEPS", ((0.5, 0, False), (5, 0, False), (0.8, 0.1, False), (5, 0, True)))
    output, queries = tmp_path / "overload.json", write_groups(tmp_path / "queries.jsonl", queries=4)
    flags = {"model_repository": served_repository, "queries": queries, "documents": 20, "limit_ms": 60000}
    rates = {"seconds": 0.5, "rate": 20, "rounds": 1, "output": output}
    argv = [part for name, value in (flags | rates).items() for part in (f"--{name}", str(value))]
    assert overload.main(argv) == 0
    (rows,) = json.loads(output.read_text())["rounds"]
    assert [row["name"] for row in rows] == [
        "8 patient callers",
        "0.5 times",
        "5 times",
        "0.8 times, 0.1 s later",
        "5 times, throttled",
    ]
    for row in rows:
        load = row["load"]
        assert set(load["outcomes"]) <= {ANSWERED, REFUSED, UNSENT}, "callers wait a minute"
        assert len(load["answered_ms"]) == load["outcomes"][ANSWERED] > 0
        assert sum(load["outcomes"].values()) == len(load["lag_ms"])
        assert row["memory_bytes"] > 0 < row["server_cores"]
    assert all(row["name"] in capsys.readouterr().out for row in rows[:1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--queries", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--rate", "0"], "--rate 0: above 0 is needed"),
        (["--rounds", "0"], "--rounds 0: above 0 is needed"),
        (["--limit_ms", "nan"], "--limit_ms nan: above 0 is needed"),
        (["--documents", "many"], "'many' is none of"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert overload.main(flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
