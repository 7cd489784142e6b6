"""A file or a folder appears whole, or nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.errors import DisRankerError
from client.files import appears_whole


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_file_and_a_folder_appear_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "made/for/it/a.json"
    for before, text in ((False, "first"), (True, "whole")):
        with appears_whole(path) as partial:
            partial.write_text(text)
            assert path.exists() == before
    with appears_whole(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "a").write_text("in it")
    assert contents(tmp_path) == {"made/for/it/a.json": "whole", "folder/a": "in it"}


def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("before")
    for path in (tmp_path / "a.json", tmp_path / "new.json"):
        with pytest.raises(RuntimeError), appears_whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError
    with pytest.raises(RuntimeError), appears_whole(tmp_path / "folder") as partial:
        (partial / "deep").mkdir(parents=True)
        (partial / "deep/a").write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"a.json": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("before")
    (tmp_path / "full/a").mkdir(parents=True)
    for path, reason in ((tmp_path / "a.json/b.json", "exists|directory"), (tmp_path / "full", "directory")):
        error = pytest.raises(DisRankerError, match=f"^{path}: cannot be written: .*({reason})")
        with error, appears_whole(path) as partial:
            partial.write_text("whole")
    assert contents(tmp_path) == {"a.json": "before"}


def test_a_file_that_cannot_be_read_meanwhile_is_named_itself(tmp_path: Path) -> None:
    (source := tmp_path / "data").mkdir()
    with pytest.raises(DisRankerError, match=f"^{source}: Is a directory$"), appears_whole(tmp_path / "out" / "file"):
        source.read_text()
    assert not (tmp_path / "out" / "file").exists()
