"""A repository goes through an object store, moto's S3 server, and comes out as it went in, or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from engines import store
from tests.support.repositories import contents

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


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.S3FileSystem]:
    """A store with the bucket ``models``, which the environment says how to reach."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "{}:{}".format(*server.get_host_and_port())
    variables = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    for name, value in {**variables, "AWS_ENDPOINT_URL": f"http://{endpoint}"}.items():
        monkeypatch.setenv(name, value)
    s3 = fs.S3FileSystem(scheme="http", endpoint_override=endpoint, allow_bucket_creation=True)
    s3.create_dir("models")
    yield s3
    server.stop()


def test_what_triton_would_serve_comes_out_of_an_object_store_as_it_went_in(
    bucket: fs.S3FileSystem, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = tmp_path / "fetched"
    assert store.main(["publish", "s3://models/ranker/7", "--model_repository", str(repository)]) == 0
    digest = capsys.readouterr().out.split()[-1]
    for _ in range(2):  # a pod that is started again
        flags = ["--digest", digest, "--model_repository", str(fetched)]
        assert store.main(["fetch", "s3://models/ranker/7", *flags]) == 0
    assert contents(fetched) == {name: FILES.get(name, "").encode() for name in PUBLISHED}
    with bucket.open_input_stream("models/ranker/7/SHA256SUMS") as sums:
        subprocess.run(["sha256sum", "--check", "--quiet", "-"], cwd=fetched, input=sums.read(), check=True)
    assert store.main(["fetch", "s3://nowhere/ranker/7", "--model_repository", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.startswith("error: s3://nowhere/ranker/7: ")


def test_what_was_published_never_changes_and_neither_does_what_is_there(repository: Path, tmp_path: Path) -> None:
    address, fetched = str(tmp_path / "store/7"), tmp_path / "fetched"
    store.publish(repository, address)
    fetched.mkdir()
    (fetched / "mine").write_text("mine")
    with pytest.raises(store.StoreError, match="it never changes"):
        store.publish(repository, address)
    with pytest.raises(store.StoreError, match="something else is there already"):
        store.fetch(address, fetched)
    with pytest.raises(store.StoreError, match="not a model repository"):
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
