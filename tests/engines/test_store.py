"""A repository goes through an object store, moto's S3 server, and comes out as it went in, or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engines import store
from tests.support.repositories import contents
from tests.support.stores import store_running
from trainer.addresses import StoreError
from trainer.stores import store_of

FILES = {
    "ranker/config.pbtxt": "ensemble",
    "ranker/1/.gitkeep": "",
    "student/config.pbtxt": "",
    "student/configs/cpu.pbtxt": "",
    "student/1/model.bin": "an older version, which Triton does not serve",
    "student/2/model.bin": "weights",
    "student/.3.partial/model.bin": "left behind",
    "student/__pycache__/model.pyc": "compiled",
    "ranker_2/config.pbtxt": "version_policy { specific { versions: 1 } }",
}
PUBLISHED = {
    "ranker/config.pbtxt", "ranker/1/.gitkeep", "ranker_2/config.pbtxt", "ranker_2/1/.gitkeep", "student/config.pbtxt",
    "student/configs/cpu.pbtxt", "student/2/model.bin", "student/2/.gitkeep",
}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "models"
    for name, content in FILES.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    return repository


def test_what_triton_would_serve_comes_out_of_an_object_store_as_it_went_in(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = tmp_path / "fetched"
    with store_running(tmp_path / "mirror") as bucket:
        address = f"{bucket.address}/ranker/7"
        assert store.main(["publish", address, "--model_repository", str(repository)]) == 0
        digest = capsys.readouterr().out.split()[-1]
        for _ in range(2):  # a pod that is started again
            assert store.main(["fetch", address, "--digest", digest, "--model_repository", str(fetched)]) == 0
        assert contents(fetched) == {name: FILES.get(name, "").encode() for name in PUBLISHED}
        s3, key = store_of(f"{address}/SHA256SUMS")
        with s3.open_input_stream(key) as sums:
            subprocess.run(["sha256sum", "--check", "--quiet", "-"], cwd=fetched, input=sums.read(), check=True)
        for nowhere in ("s3://nowhere/ranker/7", "hdfs://models/ranker/7"):
            assert store.main(["fetch", nowhere, "--model_repository", str(tmp_path / "other")]) == 2
            assert capsys.readouterr().err.startswith(f"error: {nowhere}: ")


def test_what_was_published_never_changes_and_neither_does_what_is_there(repository: Path, tmp_path: Path) -> None:
    address, fetched = str(tmp_path / "store/7"), tmp_path / "fetched"
    store.publish(repository, address)
    fetched.mkdir()
    (fetched / "mine").write_text("mine")
    with pytest.raises(StoreError, match="it never changes"):
        store.publish(repository, address)
    with pytest.raises(StoreError, match="something else is there already"):
        store.fetch(address, fetched)
    with pytest.raises(StoreError, match="not a model repository"):
        store.publish(fetched, str(tmp_path / "store/8"))
    assert contents(fetched) == {"mine": b"mine"}


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("student/2/model.bin", b"another", [], "student/2/model.bin is not what was published"),
        ("student/2/model.bin", None, [], "student/2/model.bin"),
        ("SHA256SUMS", None, [], "no repository was published here"),
        ("SHA256SUMS", b"0" * 64 + b"  ../../passwd\n", [], "no list of a repository's files"),
        ("SHA256SUMS", b"", [], "no list of a repository's files"),
        ("student/.later", b"", ["--digest", "0" * 64], f"not {'0' * 64}"),
    ],
)
def test_what_is_not_as_it_was_published_is_one_line_and_no_folder(
    name: str, content: bytes | None, flags: list[str], message: str,
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    address, fetched = tmp_path / "store/7", tmp_path / "fetched"
    store.publish(repository, str(address))
    (address / name).unlink(missing_ok=True)
    if content is not None:
        (address / name).write_bytes(content)
    assert store.main(["fetch", f"file://{address}", *flags, "--model_repository", str(fetched)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not fetched.exists() and not [*tmp_path.glob(".fetched*")]
