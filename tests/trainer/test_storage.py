"""Paths of the commands in an S3 store: what is there afterwards, also after an interruption."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from tests.support.logs import raw
from tests.support.stages import FEW, run
from tests.support.stores import Store, forget
from trainer import addresses, distill, evaluate, prepare, score, storage, stores
from trainer.data.records import read_groups


def read(address: str) -> Path:
    return Path(storage.fetched(address))


def test_a_path_may_be_an_address(
    given: str, store: Store, tmp_path: Path, data: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.publish(raw(addresses.local(f"{given}/raw")))
    run(prepare, "--mapping", "impressions", "--input", f"{given}/raw", "--output_dir", f"{given}/prepared")
    assert {"log.jsonl", "prepare.html", "failed.jsonl"} <= store.files("prepared")
    run(score, "--model", f"{given}/bert", "--data", f"{given}/data.jsonl", f"--output={given}/scores.parquet")
    run(score, "--model", bert, "--data", data, "--output", tmp_path / "scores.parquet")
    forget()
    scores = read(f"{given}/scores.parquet")
    assert pq.read_table(scores)["score"] == pq.read_table(tmp_path / "scores.parquet")["score"]
    run(evaluate, "--data", f"{given}/data.jsonl", "--systems", f"{given}/bert", f"a={given}/scores.parquet",
        "--output", f"file://{tmp_path}/table.json")  # fmt: skip
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [(row["system"], row["source"]) for row in rows] == [
        (f"{given}/bert", f"{given}/bert"), ("a", f"{given}/scores.parquet")
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert f"{given}/prepared/log.jsonl: " in printed.out
    assert f"{given}/scores.parquet: " in printed.out
    assert str(addresses.mirror()) not in printed.out + printed.err
    assert not [file for file in store.files() if file.startswith(".")]


def test_a_folder_of_the_store_is_read_as_one_of_the_disk(given: str, data: Path) -> None:
    pool = addresses.local(f"{given}/pool")
    pool.mkdir(parents=True)
    for name, lines in zip("ab", halves(data), strict=True):
        (pool / f"{name}.jsonl").write_bytes(lines)
    storage.publish(pool)
    forget()
    assert read_groups(read(f"{given}/pool")) == read_groups(data)
    run(score, "--model", f"{given}/bert", "--data", f"{given}/pool", "--output", f"{given}/scores.parquet")
    assert storage.listed(f"{given}/pool").keys() == {f"{given}/pool/{name}.jsonl" for name in "ab"}
    assert storage.listed(f"file://{data.parent}")[f"file://{data}"] == storage.listed(data)[str(data)]


def halves(data: Path) -> tuple[bytes, bytes]:
    lines = data.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    return b"".join(lines[:middle]), b"".join(lines[middle:])


def test_ctrl_c_puts_no_half_of_a_file_into_the_store(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, copy = addresses.local(f"{given}/big.bin"), shutil.copyfileobj

    def interrupted(source: BinaryIO, target: Any, length: int) -> None:
        target.write(source.read(1))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        copy(source, target, length)

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"whole")
    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        storage.publish(path)
    for thread in {*threading.enumerate()} - before:  # as the end of a process does
        thread.join(60)
    forget()
    assert read(f"{given}/big.bin").read_bytes() == b"whole"


def test_a_file_that_cannot_be_read_to_its_end_leaves_the_object_as_it_was(given: str) -> None:
    path = addresses.local(f"{given}/file.bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"whole")
    storage.publish(path)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # of which no process can read the first bytes
    with pytest.raises(addresses.StoreError, match=rf"{given}/file.bin: .*Input/output error"):
        storage.publish(path)
    gc.collect()  # frees what nobody holds
    forget()
    assert read(f"{given}/file.bin").read_bytes() == b"whole"


def test_what_another_machine_puts_into_a_folder_stays(given: str, store: Store) -> None:
    folder = addresses.local(f"{given}/folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ours", ".later.host.1.partial"):
        (folder / name).write_text(name)
    storage.publish(folder)
    (folder / "again").write_text("again")
    file, key = stores.store_of(f"{given}/folder/theirs")
    with file.open_output_stream(key) as stream:
        stream.write(b"theirs")
    storage.publish(folder)
    assert store.files("folder") == {"ours", "again", "theirs"}
    storage.fetched(f"{given}/folder")
    assert {path.name for path in folder.iterdir()} == {"ours", "again", "theirs", ".later.host.1.partial"}
    storage.discard(folder / "ours")
    assert store.files("folder") == {"again", "theirs"}


def test_no_name_in_the_store_leads_out_of_the_mirror(given: str) -> None:
    from moto.s3.models import s3_backends  # Arrow itself writes no such name

    s3_backends["123456789012"]["aws"].put_object("bucket", "evil/../../../../escaped", b"1")
    with pytest.raises(addresses.StoreError, match="evil"):
        storage.fetched(f"{given}/evil")


def test_another_machine_goes_on_where_a_run_was_interrupted(
    given: str, store: Store, tmp_path: Path, data: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(score, "--model", bert, "--data", data, "--output", tmp_path / "scores.parquet")
    flags = ["--model", f"{given}/bert", "--data", f"{given}/data.jsonl", "--scores", tmp_path / "scores.parquet",
             "--output_dir", f"{given}/runs/student", *FEW, "--save_steps", "1"]  # fmt: skip
    store.refuse(r"(PUT|POST) /bucket/runs/student/model", "403 Forbidden")
    assert distill.main([*map(str, flags)]) == 2
    assert f"error: {given}/runs/student: " in capsys.readouterr().err
    store.times = 0
    assert {name.partition("/")[0] for name in store.files("runs/.student.run")} >= {"checkpoint-3", "settings.json"}
    forget()
    run(distill, *flags)
    assert f"{given}/runs/student: resumes from checkpoint 3" in capsys.readouterr().err
    assert {"model.safetensors", "training.json", "tokenizer.json"} <= store.files("runs/student")
    assert not [name for name in store.files("runs") if not name.startswith("student/")]
    record = read(f"{given}/runs/student/training.json").read_text()
    assert json.loads(record)["arguments"]["model"] == f"{given}/bert"
    assert str(addresses.mirror()) not in record


def test_a_folder_is_whole_or_not_there_wherever_its_upload_ends(given: str, store: Store) -> None:
    folder, files = addresses.local(f"{given}/folder"), {"a": "one", "b/c": "two", "d": "three"}
    for writes in range(5):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        store.refuse(r"(PUT|DELETE) /bucket/folder/[.\w]", "403 Forbidden", spare=writes)
        with pytest.raises(addresses.StoreError, match=f"{given}/folder: "):
            storage.publish(folder)
        store.times = 0
        forget()
        assert not read(f"{given}/folder").exists()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "e").write_text("four")
    storage.publish(folder)
    forget()
    assert [path.name for path in read(f"{given}/folder").iterdir()] == ["e"]
    storage.discard(folder)
    assert not folder.exists()
    assert not store.files("folder")
