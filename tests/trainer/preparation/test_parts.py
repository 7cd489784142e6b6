"""Parts of a preparation: what is said of bad input, and what they leave where they are made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.logs import Row, write, write_text
from tests.support.stores import store_running
from trainer.addresses import local
from trainer.cluster import ClusterError
from trainer.preparation.clicks import ClickArguments
from trainer.preparation.engine import Engine
from trainer.preparation.mapping import Source
from trainer.preparation.parts import Job, count_partition, made, read_file
from trainer.preparation.sessions import SessionArguments
from trainer.preparation.splits import SplitArguments

GOOD = {"query": "q", "doc_id": "d", "position": 1}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    log = Source("log", (), {"query": "query", "document": "doc_id", "position": "position"}, "own.toml [log]")
    settings = SessionArguments(), ClickArguments(), SplitArguments()
    return Job([log], str(tmp_path / "parts"), 1, 0.9, *settings, memory_limit="1GB", temporary_dir=None)


def reading(path: Path) -> Row:
    return {"part": "files/0", "source": 0, "name": f"raw/{path.name}", "file": str(path)}


def counting(directory: Path) -> Row:
    files = json.loads((directory / "files/0/part.json").read_text())["partitions"]
    return {"part": "sessions/0", "files": json.dumps([f"files/0/{name}" for name in files])}


def test_a_fault_names_the_file_as_it_was_given_and_leaves_no_part(job: Job, tmp_path: Path) -> None:
    row = made(reading(write_text(tmp_path / "log.txt", "q d 1\n")), job, read_file)
    assert row["error"].startswith("raw/log.txt: neither its name nor 'format'")
    assert not [*(tmp_path / "parts/files").iterdir()]


def test_rows_that_a_part_has_lost_are_missed(job: Job, tmp_path: Path) -> None:
    assert not made(reading(write(tmp_path / "log.jsonl", [GOOD])), job, read_file)["error"]
    row = counting(tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/files/0/impressions")
    error = made(row, job, count_partition)["error"]
    assert "parts/files/0/impressions/k=0/data_0.parquet: is gone: remove " in error


def test_tables_lie_in_the_part_as_long_as_it_is_in_work(job: Job, tmp_path: Path) -> None:
    def look(job: Job, engine: Engine, row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return {"tables": [path.name for path in folder.glob("tables-*/*")]}

    made({"part": "looks/0"}, job, look)
    (summary,) = (tmp_path / "parts/looks/0").iterdir()
    assert json.loads(summary.read_text())["tables"] == ["tables.duckdb"]


def test_a_mirror_keeps_no_parts(job: Job, tmp_path: Path) -> None:
    with store_running(tmp_path / "mirror") as store:
        job = replace(job, directory=f"{store.address}/parts")
        mirrored = local(job.directory)
        assert not made(reading(write(tmp_path / "log.jsonl", [GOOD])), job, read_file)["error"]
        assert not mirrored.joinpath("files/0").exists()
        job.part("files/0/part.json")
        assert not made(counting(mirrored), job, count_partition)["error"]
        assert [path.name for path in mirrored.rglob("*") if path.is_file()] == ["part.json"]
        assert {"files/0/part.json", "sessions/0/part.json"} <= store.files("parts")


def test_a_node_that_does_not_see_a_file_says_so(job: Job, tmp_path: Path) -> None:
    gone = str(tmp_path / "log.jsonl")
    row = made({"part": "files/0", "source": 0, "name": "log.jsonl", "file": gone}, job, read_file)
    assert "log.jsonl: " in row["error"] and "does not see it: all nodes need the input" in row["error"]
    assert row["exit_code"] == ClusterError.exit_code
