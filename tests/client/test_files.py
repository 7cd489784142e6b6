"""A file or a folder appears whole, or nothing changes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from client.errors import DisRankerError
from client.files import FORGOTTEN_S, appears_whole


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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path: Path, kind: str) -> None:
    """Those of other hosts and containers, which may share the folder, number processes that are not here."""
    name, day = socket.gethostname().replace(".", "-"), time.time() - 2 * FORGOTTEN_S
    here, beside = f"{name}-{Path('/proc/self/ns/pid').stat().st_ino}", f"{name}-1"
    ended = multiprocessing.get_context("fork").Process()
    ended.start()
    ended.join()
    at_work = [f"{here}.{os.getppid()}", f"{beside}.{ended.pid}", f"elsewhere.{ended.pid}"]
    killed = [f"{here}.{ended.pid}", f"{beside}.{os.getppid()}", f"elsewhere.{os.getppid()}"]
    for writer in (*at_work, *killed):
        path = partial = tmp_path / f".a.json.{writer}.partial"
        if kind == "folder":
            path.mkdir()
            path /= "model"
        path.touch()
        os.utime(partial, None if writer in at_work[1:] else (day, day))
    with appears_whole(tmp_path / "a.json") as partial:
        partial.touch()
    kept = {f".a.json.{writer}.partial" for writer in at_work}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *kept}
