"""A soak of seconds, and which failures a fault explains."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bench import chaos, soak
from bench.soak_results import AFTER_S, Request, Struck, explained
from tests.support.waiting import PATIENCE_S


def test_a_soak_writes_its_report(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "LIMIT_S", PATIENCE_S)  # a busy machine is no failure
    flags = ["--model_repository", str(served_repository), "--minutes", "0.1", "--pause_s", "0.5"]
    assert soak.main([*flags, "--output", str(tmp_path / "soak")]) == 0
    assert "0 faults, 0 wrong answers, 0 failures that no fault explains" in capsys.readouterr().out
    written = json.loads((tmp_path / "soak.json").read_text())
    assert {kind for kind, *_ in written["requests"]} == {*soak.SIZES}
    assert all(memory > 0 and files > 0 for _, memory, _, files in written["samples"])
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_does_not_come_back_ends_the_soak_with_its_report(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "FAULTS", {"command killed": lambda command: os.kill(command, signal.SIGKILL)})
    monkeypatch.setattr(chaos, "READY_S", 2.0)
    flags = ["--model_repository", str(served_repository), "--minutes", "5", "--fault_every_s", "2"]
    assert soak.main([*flags, "--output", str(tmp_path / "soak")]) == 1
    assert "the server did not come back" in capsys.readouterr().out
    assert json.loads((tmp_path / "soak.json").read_text())["faults"][0][::2] == ["command killed", None]


@pytest.mark.parametrize(
    ("sent", "seconds", "expected"),
    [(5, 4, False), (5, 5, True), (10, 1, True), (20 + AFTER_S, 1, True), (20.1 + AFTER_S, 1, False)],
)
def test_a_fault_explains_what_was_under_way_while_it_was_felt(sent: float, seconds: float, expected: bool) -> None:
    assert explained(Request("small", sent, seconds, "ServerError"), [Struck("student killed", 10, 20)]) == expected


def test_a_time_that_makes_no_sense_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "0"]) == 2
    assert capsys.readouterr().err == "error: --minutes 0: above 0 is needed\n"
