"""``trainer.prepare`` names a flag that it cannot take before it reads the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.logs import prepared, raw, write_text
from tests.support.stages import fails
from trainer import prepare

TIME = ("--split", "time", "--dev_from")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*TIME, "noon", "--test_from", "2026-01-01"), "--dev_from 'noon' is no date"),
        ((*TIME, "2026-01-01", "--test_from", "2026-13-01"), "--test_from '2026-13-01' is no date"),
        ((*TIME, "2026-01-02", "--test_from", "2026-01-01"), "--test_from 2026-01-01 must come after --dev_from 2026"),
        (("--position_bias", "missing.tsv"), "missing.tsv"),
        (("--model", "no/such/folder"), "--model no/such/folder: no tokenizer: "),
        (("--temporary_dir", "missing"), "--temporary_dir missing is no folder"),
    ],
)
def test_a_flag_that_cannot_be_taken_is_named_before_the_log_is_read(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "impressions.jsonl", "no JSON\n")
    given = ("--mapping", "impressions", "--input", tmp_path, "--output_dir", tmp_path / "out")
    assert message in fails(prepare, capsys, *given, *flags)


def test_only_the_same_words_are_joined_at_a_resemblance_of_1(tmp_path: Path) -> None:
    found = prepared(raw(tmp_path / "raw"), tmp_path / "out", "--near_duplicates", 1)
    assert {*found} >= {"log", "pool"}
