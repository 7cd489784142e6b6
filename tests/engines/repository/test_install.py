"""A new version comes whole, as one set with its tokenizer and configs, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.records import EngineError
from engines.repository import install as installer
from engines.repository.configs import read_config
from engines.repository.install import check_repository, install
from tests.support.repositories import MANIFEST, contents, engine_of, write_checkpoint

TENSORS = "".join(
    f'{{ name: "{name}" data_type: TYPE_INT32 dims: [ 256 ] }}, '
    for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
)
STUDENT = f"""# written by hand
name: "student"
max_batch_size: 1000
input [ {TENSORS}{{ name: "pool_positions" data_type: TYPE_INT32 dims: [ 16 ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ 16 ] }} ]
model_warmup [ {{
  name: "rows" batch_size: 8
  inputs {{ key: "input_ids" value: {{ data_type: TYPE_INT32 dims: [ 256 ] zero_data: true }} }}
}} ]
"""
TOKENIZER = """# written by hand
name: "tokenizer"
input [ { name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "input_ids" data_type: TYPE_INT32 dims: [ -1, 256 ] },
  { name: "slots" data_type: TYPE_INT32 dims: [ -1 ] }
]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository; the skeleton for new ones is the same."""
    root = tmp_path / "repository"
    for name, text in {
        "student/config.pbtxt": STUDENT,
        "student/configs/cpu.pbtxt": STUDENT,
        "student/model.py": "# the server's model\n",
        "tokenizer/config.pbtxt": TOKENIZER,
        "tokenizer/1/model.py": "# the tokenizer's model\n",
        "scores/1/model.py": "",
        "ranker/1/.gitkeep": "",
        "ranker/config.pbtxt": 'name: "ranker"\nplatform: "ensemble"\n',
        "ranker_tokens/1/.gitkeep": "",
        "ranker_tokens/config.pbtxt": 'name: "ranker_tokens"\nplatform: "ensemble"\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(installer, "SKELETON", root)
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def test_version_has_engine_manifest_and_server_model(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    version = install(repository, checkpoint, engine_of(checkpoint), MANIFEST)
    assert version == repository / "student" / "1"
    assert sorted(path.name for path in version.iterdir()) == ["manifest.json", "model.bin", "model.py", "model.xml"]
    manifest = json.loads((version / "manifest.json").read_text())
    assert (manifest["rows_per_call"], manifest["runs_in"], manifest["precision"]) == (8, "fp32", "bf16")
    assert manifest["parity"]["worst"] == [{"query_id": "q", "doc_id": "d", "difference": 0.0}]
    after = contents(repository)
    added = {f"student/1/{path.name}" for path in version.iterdir()}
    assert set(after) - set(before) == {*added, "tokenizer/tokenizer.json", "tokenizer/pair_encoding.json"}
    assert {name: after[name] for name in before} == before, "configs that fit keep every byte"
    assert after["tokenizer/tokenizer.json"] == b"the new tokenizer.json"


def test_versions_count_up_from_the_highest(repository: Path, checkpoint: Path) -> None:
    (repository / "student" / "9").mkdir()
    (repository / "student" / ".12.partial").mkdir()
    version = install(repository, checkpoint, engine_of(checkpoint), replace(MANIFEST, served_by=""))
    assert version.name == "10"
    assert not (version / "model.py").exists()


def test_configs_get_the_dimensions_that_differ(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    manifest = replace(MANIFEST, row_length=512, slots_per_row=8, max_rows=6)
    install(repository, checkpoint, engine_of(checkpoint), manifest)
    for name in ("config.pbtxt", "configs/cpu.pbtxt"):
        student = read_config(repository / "student" / name)
        assert student.max_batch_size == 6
        assert (student.model_warmup[0].batch_size, student.model_warmup[0].inputs["input_ids"].dims[0]) == (6, 512)
        assert {tensor.name: list(tensor.dims) for tensor in (*student.input, *student.output)} == {
            **{name: [512] for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")},
            "pool_positions": [8],
            "scores": [8],
        }
    tokenizer = read_config(repository / "tokenizer" / "config.pbtxt")
    assert [list(tensor.dims) for tensor in (*tokenizer.input, *tokenizer.output)] == [[1], [-1, 512], [-1]]
    assert tokenizer.max_batch_size == 0
    assert contents(repository)["ranker/config.pbtxt"] == before["ranker/config.pbtxt"]


def test_failure_on_the_way_leaves_everything_as_it_was(repository: Path, checkpoint: Path) -> None:
    install(repository, checkpoint, engine_of(checkpoint), MANIFEST)
    (checkpoint / "tokenizer.json").write_text("a newer tokenizer.json")
    # The second tokenizer file cannot be written: a folder lies there.
    (repository / "tokenizer/pair_encoding.json").unlink()
    (repository / "tokenizer/pair_encoding.json").mkdir()
    before = contents(repository)
    with pytest.raises(EngineError, match="cannot be written"):
        install(repository, checkpoint, engine_of(checkpoint), replace(MANIFEST, row_length=512))
    assert contents(repository) == before
    assert [path.name for path in (repository / "student").iterdir() if path.name.startswith(".")] == []


def test_missing_engine_file_leaves_nothing(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    with pytest.raises(EngineError, match=r"model\.plan"):
        install(repository, checkpoint, [checkpoint / "model.plan"], MANIFEST)
    assert contents(repository) == before


def test_malformed_config_is_named_and_nothing_is_installed(repository: Path, checkpoint: Path) -> None:
    (repository / "ranker" / "config.pbtxt").write_text("name ranker")
    before = contents(repository)
    with pytest.raises(EngineError, match=r"ranker/config\.pbtxt: not a Triton model configuration"):
        install(repository, checkpoint, engine_of(checkpoint), MANIFEST)
    assert contents(repository) == before


@pytest.mark.parametrize("exists", [True, False])
def test_new_repository_is_made_from_the_skeleton_without_what_was_built(
    repository: Path, checkpoint: Path, tmp_path: Path, exists: bool
) -> None:
    tracked = set(contents(repository))
    install(repository, checkpoint, engine_of(checkpoint), MANIFEST)  # built: not to be copied
    (repository / "teacher_student").mkdir()
    new = tmp_path / "deep" / "new"
    if exists:
        new.mkdir(parents=True)
    version = install(new, checkpoint, engine_of(checkpoint), replace(MANIFEST, served_by=""))
    installed = {"student/1/manifest.json", "student/1/model.xml", "student/1/model.bin"}
    assert version == new / "student" / "1"
    assert set(contents(new)) == {*tracked, *installed, "tokenizer/tokenizer.json", "tokenizer/pair_encoding.json"}


def test_new_repository_does_not_appear_by_halves(repository: Path, checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(EngineError):
        install(new, checkpoint, [checkpoint / "model.plan"], MANIFEST)
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "checkpoint"}


def test_other_directories_are_refused(repository: Path, checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"checkpoint: not a model repository of ours"):
        check_repository(checkpoint, "openvino")
    with pytest.raises(EngineError, match=r"model\.xml: not a model repository of ours"):
        check_repository(checkpoint / "model.xml", "openvino")
    check_repository(repository, "openvino")


def test_one_repository_serves_one_kind_of_engine(repository: Path, checkpoint: Path, tmp_path: Path) -> None:
    """An engine that the repository's configuration cannot open would stop the server."""
    install(repository, checkpoint, engine_of(checkpoint), MANIFEST)
    check_repository(repository, "openvino")
    with pytest.raises(
        EngineError,
        match=r"student/1, which Triton serves, is for openvino.*give tensorrt a --model_repository of its own",
    ):
        check_repository(repository, "tensorrt")
    with pytest.raises(EngineError, match="Triton opens plans of tensorrt only"):
        check_repository(installer.SKELETON, "tensorrt_rtx")
    check_repository(tmp_path / "new", "tensorrt_rtx")
