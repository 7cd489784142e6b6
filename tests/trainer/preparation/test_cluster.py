"""Preparing on Ray: what comes out is what one machine makes, whoever dies; what is said of bad input."""

from __future__ import annotations

import os
import random
import shutil
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
from tests.support.stores import Store, store_running
from tests.support.waiting import eventually
from trainer import addresses, prepare, storage
from trainer.addresses import StoreError
from trainer.cluster import SETTINGS, ClusterArguments
from trainer.preparation.clicks import ClickArguments
from trainer.preparation.cluster import on_cluster, sources_of
from trainer.preparation.parts import Job
from trainer.preparation.sessions import SessionArguments
from trainer.preparation.splits import SplitArguments
from trainer.training.resume import open_shards

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
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store_running(tmp_path_factory.mktemp("mirror") / "here") as store:
        yield store


@pytest.fixture(scope="module")
def ray(store: Store) -> Iterator[str]:
    """The address of a cluster, whose workers know the store."""
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def kill_a_worker(parts: Path) -> list[int]:
    """Kill a process of Ray's below this one that has a part in work, if there is any; the parts name their writers."""
    for partial in parts.glob("*/.*.partial"):
        writer = int(partial.name.split(".")[-2])
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.pid == writer and process.cmdline()[0].startswith("ray::"):
                    process.suspend()
                    if partial.exists():
                        process.kill()
                        return [writer]
                    process.resume()
    return []


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

    def kill() -> None:
        def strikes() -> list[int]:
            dead.extend(kill_a_worker(tmp_path / ".there.parts"))
            return dead

        eventually(strikes)
        after.update(whole())

    killer = threading.Thread(target=kill)
    killer.start()
    run(prepare, *flags, tmp_path / "there", "--ray", ray)
    killer.join()
    assert dead and len(before) == 12 and after == before
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".html"}


def test_a_log_in_a_store_is_prepared_there(store: Store, ray: str, tmp_path: Path) -> None:
    root = store.address
    storage.publish(raw(addresses.local(f"{root}/raw")))
    flags = ["--mapping", "impressions", "--input", f"{root}/raw", "--position_bias", "estimated", "--output_dir"]
    run(prepare, *flags, tmp_path / "here")
    run(prepare, *flags, f"{root}/out", "--ray", ray)
    there = Path(storage.fetched(f"{root}/out"))
    assert contents(there) == contents(tmp_path / "here")
    assert [*storage.listed(f"{root}/.out.parts")] == []


def test_a_removal_that_is_cut_short_leaves_no_settings_beside_half_of_a_part(store: Store, ray: str) -> None:
    settings = SessionArguments(), ClickArguments(), SplitArguments()
    job = Job([], f"{store.address}/.cut.parts", 1, 0.9, *settings, memory_limit="1GB", temporary_dir=None)
    part = addresses.local(job.directory) / "files/000000"
    store.refuse(r"DELETE /bucket/\.cut\.parts/(settings|files/000000/part)\.json", "403 Forbidden")
    with pytest.raises(StoreError, match="HTTP status 403"), on_cluster(ClusterArguments(ray=ray), [], job):
        for name in ("part.json", "texts.parquet"):
            write_text(part / name, "{}")
        storage.publish(part)
    store.times = 0
    assert store.files(".cut.parts") >= {"settings.json", "files/000000/part.json", "files/000000/texts.parquet"}
    storage.discard(addresses.local(job.directory))  # the store is that of other tests too


def test_parts_without_settings_go_when_a_command_begins_elsewhere_too(store: Store) -> None:
    directory = addresses.local(f"{store.address}/.lost.parts")
    write_text(directory / "files/000000/part.json", "{}")
    storage.publish(directory)
    shutil.rmtree(directory)  # another machine has another mirror
    open_shards(directory, {}, set())
    assert store.files(".lost.parts") == {"settings.json"}
    storage.discard(directory)


def test_no_name_in_a_store_leads_out_of_the_outline(store: Store, tmp_path: Path) -> None:
    from moto.s3.models import s3_backends  # Arrow itself writes no such name

    columns = 'columns = { query = "query", document = "doc_id" }'
    mapping = str(write_text(tmp_path / "own.toml", f'[log]\nfiles = ["**/*.jsonl"]\n{columns}\n'))
    for name in ("evil/../escaped.jsonl", f"odd/{tmp_path}/log.jsonl"):
        s3_backends["123456789012"]["aws"].put_object("bucket", name, b"1")
    with pytest.raises(StoreError, match=r"evil: an object there is named '.*escaped.jsonl', which is no path"):
        sources_of(mapping, f"{store.address}/evil")
    (source,) = sources_of(mapping, f"{store.address}/odd")
    assert source.files == (addresses.local(f"{store.address}/odd{tmp_path}/log.jsonl"),)


@pytest.mark.parametrize(("column", "says"), [("rank", "no column 'rank' for 'position'"), ("position", ".jsonl:1: ")])
def test_what_is_wrong_is_said_as_without_ray(
    column: str, says: str, ray: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query": "q", "doc_id": "d", "position": 0}
    write(tmp_path / "a.jsonl", [row])
    write(tmp_path / "b.parquet", [row])
    columns = f'{{ query = "query", document = "doc_id", position = "{column}" }}'
    files = "b.parquet" if column == "rank" else "*.*"
    mapping = write_text(tmp_path / "own.toml", f'[log]\nfiles = ["{files}", "!own.toml"]\ncolumns = {columns}\n')
    flags = ["--mapping", mapping, "--output_dir", tmp_path / "out"]
    here = fails(prepare, capsys, *flags)
    assert prepare.main([*map(str, flags), "--ray", ray]) == 2
    assert says in here and capsys.readouterr().err.strip().splitlines()[-1] == here  # behind the bars


def test_without_ray_one_line_says_how_to_get_it(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = [*FLAGS, "--input", log, "--output_dir", tmp_path / "out"]
    assert "pip install -e '.[cluster]'" in fails(prepare, capsys, "--ray", *flags)
