"""The bench of a training step on a processor, tried with a tiny model."""

from __future__ import annotations

import pytest

from bench import processor


@pytest.mark.parametrize("flag", ["--queries", "--rounds"])
def test_no_work_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert processor.main(["--quick", flag, "0"]) == 2
    assert capsys.readouterr().err == "error: --queries and --rounds must be at least 1\n"


def test_every_case_is_timed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert processor.main(["--quick", "--queries", "1", "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    compared = {row[1].strip(): row[4].strip() for row in rows}
    assert {name: other for name, other in compared.items() if other} == {
        name: other for name, other in processor.AGAINST.items() if name != "scoring, flex"
    }
    assert all(float(row[2].split()[0]) > 0 for row in rows)
