"""Writers are ended in the middle, by a kill at every change of a file and by a disk that is full."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from client.errors import DisRankerError
from client.files import naming
from engines.repository.models import STUDENT, copy_models
from tests import ROOT
from tests.support.checkpoints import tiny_bert, write_groups, write_teacher
from tests.support.logs import DOCUMENTS, impressions
from tests.support.logs import write as write_rows
from tests.support.repositories import contents, write_checkpoint
from tests.support.stages import FEW, SERVER, exit_codes, finish, started, status_of
from tests.support.waiting import eventually
from tests.support.writers import main as write
from trainer.training.resume import ENDED_FILE, WHOLE_FILE

WRITERS = "tests.support.writers"
SIZE = 1000  # bytes of a file, where that is limited: less than any result has


def whole(root: Path) -> dict[str, bytes]:
    """The files that are there, without what a killed writer left beside it, which the next one removes."""
    return {name: content for name, content in contents(root).items() if ".partial" not in name}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("durability") / "bert")


@pytest.fixture
def training(bert: Path, tmp_path: Path) -> list[object]:
    """The flags of a run of three steps, with a checkpoint after each of which one is kept."""
    data = write_groups(tmp_path / "data.jsonl", queries=6)
    scores = write_teacher(tmp_path / "scores.parquet", data)
    saving = ["--save_steps", 1, "--save_total_limit", 1, "--learning_rate", "1e-3"]
    return ["--model", bert, "--data", data, "--scores", scores, *FEW, *saving, "--output_dir"]


def test_a_checkpoint_whose_writer_is_killed_at_any_change_is_there_whole_or_not_at_all(
    bert: Path, tmp_path: Path
) -> None:
    """Each writer meets what those before it left."""
    flags, target = ["checkpoint", str(bert)], tmp_path / "output/checkpoint"
    expected = tmp_path / "expected/checkpoint"  # by another name its card would be another
    assert write([*flags, str(expected)]) == 0
    for kill in range(1, 200, 5):
        if finish(WRITERS, *flags, target, at=kill) == 0:
            break
        assert not target.exists()
    assert kill > 8
    assert contents(target) == contents(expected)
    assert [path.name for path in target.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("tokenizer", ["same", "other"])
def test_a_version_whose_installer_is_killed_at_any_change_is_there_whole_or_not_at_all(
    tmp_path: Path, tokenizer: str
) -> None:
    """With the same tokenizer that is all; with another, files beside it are of before or of after, each whole."""
    checkpoint, repository = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "first/models"
    copy_models(ROOT / "model_repository", repository, STUDENT, STUDENT.names)
    assert write(["version", str(checkpoint), str(repository)]) == 0
    before = contents(repository)
    if tokenizer == "other":
        (checkpoint / "tokenizer.json").write_text("another")
    expected = shutil.copytree(repository, tmp_path / "second/models")
    assert write(["version", str(checkpoint), str(expected)]) == 0
    after = contents(expected)
    assert after.keys() - before.keys() == {name for name in after if name.startswith("student/2/")}
    for kill in range(1, 200):
        shutil.rmtree(repository.parent)
        shutil.copytree(expected, repository)
        shutil.rmtree(repository / "student/2")
        for name, content in before.items():
            (repository / name).write_bytes(content)
        if finish(WRITERS, "version", checkpoint, repository, at=kill) == 0:
            break
        there = whole(repository)
        new = {name for name in there if name.startswith("student/2/")}
        assert there.keys() - new == before.keys()
        assert not new or {name: there[name] for name in after} == after
        assert all(there[name] in (before[name], after[name]) for name in before)
        assert tokenizer == "other" or new or there == before
        assert finish(WRITERS, "version", checkpoint, repository) == 0
        assert there.keys() | after.keys() <= contents(repository).keys()
        assert contents(repository) == whole(repository)
        assert [path.name for path in repository.parent.iterdir()] == ["models"]
    assert kill > 5


def test_scores_whose_writer_is_killed_at_any_change_are_there_whole_or_not_at_all(bert: Path, tmp_path: Path) -> None:
    """Each writer goes on with the shards of those before it."""
    data, output = write_groups(tmp_path / "data.jsonl"), tmp_path / "output/scores.parquet"
    flags = ["--model", bert, "--data", data, "--pairs_per_shard", 12, "--output"]
    assert finish("score", *flags, tmp_path / "expected.parquet") == 0
    for kill in range(1, 200):
        if finish("score", *flags, output, at=kill) == 0:
            break
        assert not output.exists() or kill > 10
    assert kill > 8
    assert pq.read_table(output).to_pylist() == pq.read_table(tmp_path / "expected.parquet").to_pylist()
    assert [path.name for path in output.parent.iterdir()] == ["scores.parquet"]


def test_a_run_that_is_killed_at_any_change_loses_no_checkpoint_that_was_whole(
    training: list[object], tmp_path: Path
) -> None:
    """Though only one is kept; each run goes on with what those before it left."""
    output, last = tmp_path / "output/student", 0
    assert finish("distill", *training, tmp_path / "expected") == 0
    for kill in range(1, 400, 9):
        if finish("distill", *training, output, at=kill) == 0:
            break
        whole = [path.parent for path in output.parent.rglob(WHOLE_FILE)]
        steps = [int(path.name.removeprefix("checkpoint-")) for path in whole if path.name != "checkpoint-3" or
                 (path / ENDED_FILE).exists()]  # fmt: skip
        assert output.exists() or max(steps, default=0) >= last
        last = max(steps, default=0)
    assert kill > 20
    weights, expected = (load_file(path / "model.safetensors") for path in (output, tmp_path / "expected"))
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


Full = Callable[[int, bool], None]  # of a process, whether its disk is full from now on


@pytest.fixture(params=["limit", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Full]]:
    """A folder, and what makes the disk full for a process: a limit of a file's size, or all room of a small one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":

        def limit(process: int, full: bool) -> None:
            infinity = resource.RLIM_INFINITY
            resource.prlimit(process, resource.RLIMIT_FSIZE, (SIZE if full else infinity, infinity))

        yield folder, limit
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")

    def fill(process: int, full: bool) -> None:
        try:
            (folder / "filler").write_bytes(bytes(2**25) if full else b"")
        except OSError:
            assert full

    yield folder, fill
    subprocess.run(["umount", "-l", folder], check=True)


def meets_a_full_disk(full: Full, log: Path, at: str, stage: str, *flags: object) -> str:
    """The line of a command that fails since its disk is full from the path ``at`` on; then it has room again."""
    process = started(stage, *flags, at=at, send=signal.SIGSTOP, log=log)
    eventually(lambda: process.exitcode is not None or status_of(process.pid) == "T")
    full(process.pid or 0, True)
    os.kill(process.pid or 0, signal.SIGCONT)
    assert exit_codes([process]) == [2], log.read_text()
    text = log.read_text()
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "cannot be written: " in line
    full(os.getpid(), False)
    return line


def test_a_result_that_cannot_be_written_is_written_later_without_another_step(
    training: list[object], disk: tuple[Path, Full], tmp_path: Path
) -> None:
    folder, full = disk
    flags = [*training[:-1], "--save_steps", 500, "--output_dir"]
    line = meets_a_full_disk(full, tmp_path / "log", ".partial/training.json", "distill", *flags, folder / "student")
    assert f"error: {folder / 'student'}: cannot be written" in line
    assert {path.name for path in folder.iterdir()} - {"filler"} == {".student.run"}
    metrics = json.loads((folder / ".student.run/checkpoint-3/ended.json").read_text())
    assert finish("distill", *flags, folder / "student") == 0
    assert finish("distill", *flags, tmp_path / "expected") == 0
    saved, expected = (json.loads((path / "training.json").read_text()) for path in (folder / "student",
                       tmp_path / "expected"))  # fmt: skip
    assert saved["metrics"] == metrics
    assert [point["loss"] for point in saved["loss_curve"]] == [point["loss"] for point in expected["loss_curve"]]
    weights = load_file(folder / "student/model.safetensors")
    assert all(torch.equal(weights[name], weight)
               for name, weight in load_file(tmp_path / "expected/model.safetensors").items())  # fmt: skip


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    training: list[object], disk: tuple[Path, Full], tmp_path: Path
) -> None:
    folder, full = disk
    at = "checkpoint-2/config.json"
    line = meets_a_full_disk(full, tmp_path / "log", at, "distill", *training, folder / "student")
    assert f"error: {folder}/.student.run" in line
    assert [path.name for path in (folder / ".student.run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert finish("distill", *training, folder / "student") == 0


@pytest.mark.parametrize(("at", "there"), [("-000000002.parquet", 1), ("-000000004.parquet", 2)])
def test_scores_that_cannot_be_written_are_written_later(
    bert: Path, disk: tuple[Path, Full], tmp_path: Path, at: str, there: int
) -> None:
    """A shard, and the file of all."""
    folder, full = disk
    data = write_groups(tmp_path / "data.jsonl")
    flags = ["--model", bert, "--data", data, "--pairs_per_shard", 12, "--output", folder / "scores.parquet"]
    (folder / "scores.parquet").write_text("before")
    meets_a_full_disk(full, tmp_path / "log", at, "score", *flags)
    assert (folder / "scores.parquet").read_text() == "before"
    assert not list(folder.rglob("*.partial"))
    assert len(list(folder.rglob("0*.parquet"))) == there
    assert finish("score", *flags) == 0
    assert pq.read_metadata(folder / "scores.parquet").num_rows == 24


def test_a_table_and_a_version_that_cannot_be_written_leave_what_was_there(
    disk: tuple[Path, Full], tmp_path: Path
) -> None:
    folder, full = disk
    (folder / "table.json").write_text("before")
    data = write_groups(tmp_path / "data.jsonl", queries=40)
    flags = ["--data", data, "--systems", "random", "bm25", "--per_query", folder / "table.json"]
    meets_a_full_disk(full, tmp_path / "first", ".partial", "evaluate", *flags)
    assert whole(folder).pop("table.json") == b"before"
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "model.bin").write_bytes(bytes(SIZE + 1))
    copy_models(ROOT / "model_repository", folder / "models", STUDENT, STUDENT.names)
    before = contents(folder / "models")
    meets_a_full_disk(full, tmp_path / "second", "model.bin", WRITERS, "version", checkpoint, folder / "models")
    assert contents(folder / "models") == before
    assert finish("evaluate", *flags) == finish(WRITERS, "version", checkpoint, folder / "models") == 0


@pytest.mark.parametrize("at", ["impressions.toml", "log.jsonl"], ids=["tables", "records"])
def test_a_preparation_that_cannot_be_written_leaves_nothing(at: str, disk: tuple[Path, Full], tmp_path: Path) -> None:
    """Neither where the database finds no room nor where the records do."""
    folder, full = disk
    write_rows(tmp_path / "raw/impressions.jsonl", impressions())
    write_rows(tmp_path / "raw/documents.jsonl", DOCUMENTS)
    flags = ["--mapping", "impressions", "--input", tmp_path / "raw", "--output_dir", folder / "data"]
    assert f"error: {folder / 'data'}" in meets_a_full_disk(full, tmp_path / "log", at, "prepare", *flags)
    assert not {path.name for path in folder.iterdir()} - {"filler"}
    assert finish("prepare", *flags) == 0


def refused(kind: str, path: Path) -> None:
    """Write more than there is room for, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
    tensor, table = torch.zeros(10_000), pa.table({"a": range(10_000)})
    words = Tokenizer(models.WordLevel({str(number): number for number in range(1000)}, unk_token="0"))
    writers: dict[str, Callable[[], object]] = {
        "safetensors": lambda: save_file({"a": tensor}, path),
        "torch": lambda: torch.save(tensor, path),
        "tokenizers": lambda: words.save(str(path)),
        "pyarrow": lambda: pq.write_table(table, path, compression="none"),
        "python": lambda: path.write_bytes(bytes(2 * SIZE)),
    }
    try:
        with naming("the path"):
            writers[kind]()
    except DisRankerError as error:
        os._exit(0 if str(error).startswith("the path: cannot be written: ") and "\n" not in str(error) else 2)
    os._exit(3)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "tokenizers", "pyarrow", "python"])
def test_what_the_disk_refuses_a_library_is_one_line(kind: str, tmp_path: Path) -> None:
    process = SERVER.Process(target=refused, args=(kind, tmp_path / "file"))
    process.start()
    process.join(300)
    assert process.exitcode == 0
