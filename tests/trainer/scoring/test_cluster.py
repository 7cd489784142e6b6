"""Relabelling on Ray: every pair once and as without it, whoever dies; what is said of bad input."""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import DisRankerError
from tests.support.checkpoints import write_groups
from tests.support.stages import fails, run
from tests.support.waiting import eventually
from trainer import score
from trainer.data.records import groups_between, read_groups
from trainer.data.survey import Survey, surveyed
from trainer.scoring.cluster import Worker
from trainer.scoring.teachers import ScoreArguments

QUERIES = 12


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JSON lines and Parquet, with what writers leave beside them."""
    folder = tmp_path_factory.mktemp("pool")
    for part in range(2):
        write_groups(folder / f"part-{part}.jsonl", queries=QUERIES, seed=part, name=f"q{part}-")
    rows = [*map(json.loads, (folder / "part-1.jsonl").read_text().splitlines())]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-1.parquet", row_group_size=5)
    (folder / "part-1.jsonl").unlink()
    (folder / "_SUCCESS").touch()
    return folder


def test_a_folder_is_read_in_any_parts_as_in_one(pool: Path) -> None:
    whole = read_groups(pool)
    files = [str(path) for path in sorted(pool.glob("part-*"))]
    found = Survey.of(files, lambda rows: [surveyed(row) for row in reversed(rows)])
    assert found.pairs == array("I", [len(group.documents) for group in whole])

    @given(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(sorted))
    def any_part_is_that_part(ends: list[int]) -> None:
        read = [group for file, *places in found.parts(*ends) for group in groups_between(file, *places)]
        assert read == whole[slice(*ends)]

    any_part_is_that_part()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_that_is_killed_is_replaced_and_every_pair_is_scored_once(
    pool: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which is not the workers' directory
    flags = ["--model", os.path.relpath(bert), "--data", os.path.relpath(pool), "--pairs_per_shard", 20]
    run(score, *flags, "--output", "here.parquet")
    killed = list[int]()

    def kill_a_worker() -> None:
        eventually(workers)
        for process in workers()[:1]:
            process.kill()
            killed.append(process.pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    run(score, "--ray", *flags, "--ray_workers", 1, "--output", "there.parquet")
    killer.join()
    assert killed
    assert pq.read_table(tmp_path / "there.parquet") == pq.read_table(tmp_path / "here.parquet")
    assert not (tmp_path / ".there.parquet.shards").exists()


def workers() -> list[psutil.Process]:
    """The actors that Ray has started below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if "MapWorker" in " ".join(process.cmdline()) else []
    return found


@pytest.mark.parametrize(
    ("error", "says", "exit_code"),
    [
        (MemoryError("no more"), "out of memory (no more); what helps: a smaller --rows_per_batch", 1),
        (ModuleNotFoundError("No module named 'peft'"), "No module named 'peft'", 2),
    ],
)
def test_what_a_node_lacks_is_one_line(
    error: Exception, says: str, exit_code: int, pool: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ScoreArguments, "scorer", fail)
    worker = Worker(ScoreArguments(data=[str(pool)], output="scores.parquet", model=str(bert)), str(tmp_path))
    row = worker({"first": 0, "last": 1, "parts": json.dumps([[str(pool / "part-0.jsonl"), 0, 1]])})
    assert says in row["error"] and row["exit_code"] == exit_code


def test_without_ray_one_line_says_how_to_get_it(
    pool: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = ["--model", bert, "--data", pool, "--output", tmp_path / "scores.parquet"]
    assert "pip install -e '.[cluster]'" in fails(score, capsys, "--ray", *flags)


def test_faults_of_all_files_are_named_by_their_places(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text((pool / "part-0.jsonl").read_text() + "{}\n")
    good, bad = str(pool / "part-0.jsonl"), str(tmp_path / "bad.jsonl")
    for files, says in (([good, bad], f"{bad}:{QUERIES + 1}: "), ([good, good], f"it was in {good}:1")):
        with pytest.raises(DisRankerError, match=says):
            Survey.of(files, lambda rows: map(surveyed, rows))
