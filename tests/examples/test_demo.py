"""The demo makes its folder anew, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import demo


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    # Were it accepted, the first stage would end the demo with another exit code: there is no such model.
    assert demo.main(["--output_dir", str(tmp_path), "--teacher", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(
        f"error: --output_dir {tmp_path}: this folder is not empty, and it was not made by this command"
    )
    assert precious.read_text() == "years of work"
    assert demo.main(["--output_dir", str(precious)]) == 2
    assert capsys.readouterr().err == f"error: --output_dir {precious}: cannot be made: File exists\n"
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_or_empty_folder_and_one_of_a_demo_are_made_anew(exists: bool, tmp_path: Path) -> None:
    root = tmp_path / "runs" / "demo"
    if exists:
        root.mkdir(parents=True)
    demo.make_anew(root)
    (root / "table.json").write_text("[]")
    demo.make_anew(root)
    assert [path.name for path in root.iterdir()] == [demo.MARKER]
