"""New versions of a running server: under load, and what it must not take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from bench.switches import EXPLICIT, switch
from client import RankingClient
from engines import versions
from engines.repository.configs import read_config
from engines.repository.control import ADMIN_KEY
from model_repository.student.digests import sha256
from model_repository.tokenizer.pair_encoding import encoding_hash
from tests.support.checkpoints import tiny_bert
from tests.support.requests import QUERY, answer, assert_equal, documents
from tests.support.servers import Reference, Server, build, ports, running

KEY = "open sesame"


@pytest.fixture(scope="module")
def two_versions(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of different weights and one tokenizer."""
    folder = tmp_path_factory.mktemp("two")
    limits: dict[str, int] = {"max_pair_tokens": 256, "row_length": 256, "slots_per_row": 16, "max_documents": 1000}
    repository = Path(shutil.copytree(served_repository, folder / "model_repository"))
    return build(tiny_bert(folder / "bert", layers=1, **limits), repository, "fp32")


def test_versions_change_under_load(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten times of python -m bench.switches, twice."""
    monkeypatch.setenv(ADMIN_KEY, KEY)
    repository = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    report = switch(repository, (1, 2), switches=2, rate=10, steady_s=0.5, log=tmp_path / "log")
    assert report.good(), "\n".join(report.lines())
    assert {each.outcome for each in report.asked} == {"1", "2"}


@pytest.fixture(scope="module")
def explicit(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """A repository of version 1 and its server, which wants a key."""
    folder = tmp_path_factory.mktemp("explicit")
    repository = Path(shutil.copytree(two_versions, folder / "model_repository"))
    assert versions.main(["use", "1", "--model_repository", str(repository)]) == 0
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(ADMIN_KEY, KEY)
        with running(repository, folder / "log", *EXPLICIT) as server:
            yield repository, server


def _cut(version: Path) -> None:
    (version / "model.bin").write_bytes((version / "model.bin").read_bytes()[:100])


def _change(version: Path) -> None:
    content = bytearray((version / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.bin").write_bytes(content)


def _remove(version: Path) -> None:
    (version / "model.bin").unlink()


def _described(version: Path, **changed: object) -> None:
    manifest = version / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changed}))


def _another_encoding(version: Path) -> None:
    _described(version, encoding_hash="0" * 64)


def _that_does_not_load(version: Path) -> None:
    """Whole by its manifest."""
    _cut(version)
    _described(version, files={name: sha256(version / name) for name in ("model.xml", "model.bin")})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut, "model.bin is not what was built"),
        (_change, "model.bin is not what was built"),
        (_remove, "model.bin is missing"),
        (_another_encoding, "was built for another tokenizer"),
        (_that_does_not_load, "it serves what it served before"),
    ],
)
def test_a_version_that_cannot_serve_changes_nothing(
    explicit: tuple[Path, Server],
    reference: Reference,
    harm: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository, server = explicit
    whole = shutil.copytree(repository / "student/2", repository.with_name("whole"))
    configs = [read_config(path) for path in sorted(repository.rglob("*.pbtxt"))]
    monkeypatch.setenv(ADMIN_KEY, KEY)
    harm(repository / "student/2")
    assert versions.main(["use", "2", "--server", server.url, "--model_repository", str(repository)]) == 2
    shutil.rmtree(repository / "student/2")
    whole.rename(repository / "student/2")
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [read_config(path) for path in sorted(repository.rglob("*.pbtxt"))] == configs
    candidates = documents(5)
    with RankingClient(server.url) as client, grpc.InferenceServerClient(server.url) as raw:
        assert_equal(answer(client, QUERY, candidates), reference(QUERY, candidates))
        assert raw.is_model_ready("student", "1") and raw.is_model_ready("ranker")


def test_the_key_is_needed(
    explicit: tuple[Path, Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, server = explicit
    asked = ["use", "2", "--server", server.url, "--model_repository", str(repository)]
    for key in ("", "open barley"):
        monkeypatch.setenv(ADMIN_KEY, key)
        assert versions.main(asked) == 2
        assert f"model control needs the key of the server: set it as {ADMIN_KEY}" in capsys.readouterr().err


def _with_another_tokenizer(repository: Path) -> Path:
    """Two words change places in its vocabulary, and fewer documents than the check has texts are taken."""
    tokenizer, limits = (repository / "tokenizer" / name for name in ("tokenizer.json", "pair_encoding.json"))
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["river"], vocabulary["bridge"] = vocabulary["bridge"], vocabulary["river"]
    tokenizer.write_text(json.dumps(content))
    limits.write_text(json.dumps({**json.loads(limits.read_text()), "max_documents": 8}))
    _described(repository / "student/2", encoding_hash=encoding_hash(repository / "tokenizer"))
    return repository


def test_servers_that_cannot_change_are_named(
    explicit: tuple[Path, Server],
    two_versions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One without model control, one of another repository, one of another tokenizer, none at all."""
    monkeypatch.setenv(ADMIN_KEY, KEY)
    copy = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    (copy / "student/2").rename(copy / "student/3")
    other = _with_another_tokenizer(Path(shutil.copytree(two_versions, tmp_path / "other")))
    with running(two_versions, tmp_path / "log") as without_control:
        for repository, address, message in (
            (
                copy,
                without_control.url,
                "takes no new version while it runs: start it with --model-control-mode=explicit",
            ),
            (copy, explicit[1].url, "and not version 3: it serves another repository than"),
            (other, explicit[1].url, "has another tokenizer loaded than"),
            (copy, f"127.0.0.1:{ports()['grpc']}", "Failed to connect"),
        ):
            assert versions.main(["use", "latest", "--server", address, "--model_repository", str(repository)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line
    beside = ["use", "1", "--beside", "3", "--server", explicit[1].url, "--model_repository", str(copy)]
    assert versions.main(beside) == 2
    assert "--server is for a server of one version" in capsys.readouterr().err
