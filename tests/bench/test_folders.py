"""The benches remove only what a bench made, whatever folders they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import environments
from bench.folders import MARKER, own
from bench.serving import __main__ as serving
from bench.training import __main__ as training
from client.errors import DisRankerError


@pytest.mark.parametrize("bench", [serving, training])
def test_a_working_folder_of_others_is_left_alone(
    bench: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "student" / "model.safetensors"  # a name that both benches use for their own
    kept.parent.mkdir()
    kept.write_text("weights")
    # Were it accepted, another line would tell that there is no such data.
    assert bench.main(["--work_dir", str(tmp_path), "--data", str(tmp_path / "none.jsonl")]) == 2  # type: ignore[attr-defined]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --work_dir {tmp_path}: this folder is not empty")
    assert kept.read_text() == "weights"


def test_a_folder_is_marked_once_and_stays_usable(tmp_path: Path) -> None:
    for _ in range(2):
        own(tmp_path / "runs" / "bench", "--work_dir", MARKER)
        (tmp_path / "runs" / "bench" / "result").touch()
    with pytest.raises(DisRankerError, match="another"):
        own(tmp_path / "runs" / "bench", "--work_dir", ".another")


def test_a_folder_that_is_no_environment_is_not_cleared(tmp_path: Path) -> None:
    requirements, kept = tmp_path / "trl.txt", tmp_path / "given" / "trl" / "notes.txt"
    requirements.write_text("trl")
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    with pytest.raises(environments.BenchError, match="is not a virtual environment"):
        environments.interpreter(requirements, tmp_path / "given")
    assert kept.read_text() == "kept"
