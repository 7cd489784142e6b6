"""Preparing on Ray: what comes out is what one machine makes, whoever dies; what is said of bad input."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.logs import DOCUMENTS, Row, counts, impressions, raw, write, write_text
from tests.support.stages import fails, finish, run
from tests.support.stores import store_running
from tests.support.waiting import eventually
from trainer import addresses, prepare, storage
from trainer.cluster import SETTINGS, ClusterError
from trainer.preparation.clicks import ClickArguments
from trainer.preparation.mapping import Source
from trainer.preparation.parts import Job, made, read_file
from trainer.preparation.sessions import SessionArguments
from trainer.preparation.splits import SplitArguments

START = 1_700_000_000
FLAGS = ["--mapping", "impressions", "--max_failed", 5, "--max_session_clicks", 6, "--min_dwell_s", 30,
         "--max_click_weight", 1.5, "--split", "time", "--dev_from", "2023-11-14T23:45",
         "--test_from", "2023-11-15T00:30", "--memory_limit", "500MB"]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def odd_rows() -> list[Row]:
    """A log with copies, a robot, a session of two days, and rows without session, time or a text, in any order."""
    rows = impressions(160)
    rows += rows[40:80] + [{**row, "dwell_s": 90, "click": 1} for row in rows[80:90]]
    rows += [{**row, "session": "robot", "click": 1} for row in rows[:8]]
    rows += [{**row, "session": "s3", "time": START + 172_800} for row in rows[8:10]]
    rows += [{**row, "session": None, "query": row["query"].upper()} for row in rows[100:140]]
    rows += [{**row, "session": "t", "time": None} for row in rows[:3]] + [{**rows[0], "doc_id": "nowhere"}]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in files of several layouts, of which some are broken."""
    folder, rows = tmp_path_factory.mktemp("raw"), odd_rows()
    for number, ending in enumerate(("jsonl", "parquet", "csv", "jsonl.zst", "tsv.gz")):
        write(folder / f"impressions/part-{number}.{ending}", rows[number::5])
    write(folder / "impressions/part-5.jsonl", [{**rows[0], "position": 0}, rows[1], {**rows[2], "click": "often"}])
    write(folder / "impressions/part-6.parquet", [{"rank": row["position"], "query": row["query"]} for row in rows])
    write_text(folder / "impressions/part-7[a].jsonl", "half\n")
    half = write(folder / "impressions/part-8.jsonl.gz", rows[:50])
    half.write_bytes(half.read_bytes()[:-30])
    write(folder / "documents/a.jsonl", DOCUMENTS[:30])
    words = " ".join(f"word{number}" for number in range(60))
    near = [{"doc_id": f"d{number}", "title": "Alike", "summary": f"{words} {number}"} for number in (30, 31)]
    write(folder / "documents/b.parquet", DOCUMENTS[32:] + near)
    write_text(folder / "bias.tsv", "1 1\n2 0.8\n3 0.3\n4 0.1\n")
    write(folder / "judgments.jsonl", [{"query": "Oak table", "doc_id": "d12", "label": 2}])
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with store_running(tmp_path_factory.mktemp("mirror") / "here") as store:
        yield store.address


@pytest.fixture(scope="module")
def ray(store: str) -> Iterator[str]:
    """The address of a cluster, whose workers know the store."""
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def workers() -> list[psutil.Process]:
    """The tasks that Ray runs below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Map") else []
    return found


def test_parts_are_made_once_whoever_dies_and_the_folder_is_that_of_one_machine(
    log: Path, ray: str, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--input", log, "--position_bias", log / "bias.tsv", "--output_dir"]
    run(prepare, *flags, tmp_path / "here")
    found = counts(tmp_path / "here")
    assert found["failures"] == 5 and found["correction"]["clipped"]
    assert {"documents with nearly the text of another"} < {each["rule"] for each in found["dropped"] + found["notes"]}

    def whole() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob(".there.parts/files/*/part.json")}

    # It dies as it reads what workers have told of the files.
    assert finish("prepare", *flags, tmp_path / "there", "--ray", ray, at="part.json") == -signal.SIGKILL
    before, after, dead = whole(), dict[Path, int](), list[int]()

    def kill_a_worker() -> None:
        eventually(workers)
        for process in workers()[:1]:
            process.kill()
            dead.append(process.pid)
        after.update(whole())

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    run(prepare, *flags, tmp_path / "there", "--ray", ray)
    killer.join()
    assert dead and len(before) == 12 and after == before
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".html"}


def test_a_log_in_a_store_is_prepared_there(store: str, ray: str, tmp_path: Path) -> None:
    storage.publish(raw(addresses.local(f"{store}/raw")))
    run(prepare, "--mapping", "impressions", "--input", f"{store}/raw", "--output_dir", tmp_path / "here")
    run(prepare, "--mapping", "impressions", "--input", f"{store}/raw", "--output_dir", f"{store}/out", "--ray", ray)
    there = Path(storage.fetched(f"{store}/out"))
    assert contents(there) == contents(tmp_path / "here")
    assert [*storage.listed(f"{store}/.out.parts")] == []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    log = Source("log", (), {"query": "query", "document": "doc_id", "position": "position"}, "own.toml [log]")
    settings = SessionArguments(), ClickArguments(), SplitArguments()
    return Job([log], str(tmp_path / "parts"), 1, 0.9, 0, *settings, memory_limit="1GB", temporary_dir=None)


def test_a_row_is_named_as_on_one_machine_and_leaves_no_part(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{"query": "q", "doc_id": "d", "position": 0}])
    row = made({"part": "files/0", "source": 0, "name": "raw/log.jsonl", "file": str(path)}, job, read_file)
    assert row["error"].startswith("raw/log.jsonl:1: position '0' is not 1, 2, ...")
    assert not [*(tmp_path / "parts/files").iterdir()]


def test_a_node_that_does_not_see_a_file_says_so(job: Job, tmp_path: Path) -> None:
    gone = str(tmp_path / "log.jsonl")
    row = made({"part": "files/0", "source": 0, "name": "log.jsonl", "file": gone}, job, read_file)
    assert "log.jsonl: " in row["error"] and "does not see it: all nodes need the input" in row["error"]
    assert row["exit_code"] == ClusterError.exit_code


def test_without_ray_one_line_says_how_to_get_it(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = [*FLAGS, "--input", log, "--output_dir", tmp_path / "out"]
    assert "pip install -e '.[cluster]'" in fails(prepare, capsys, "--ray", *flags)
