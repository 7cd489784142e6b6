"""A version comes whole, as one set with its tokenizer and configs, or not at all; the teacher beside the student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from client.errors import DisRankerError
from engines import versions
from engines.records import CpuEngine, EngineError, Int8
from engines.repository import install as installer
from engines.repository.configs import read_config
from engines.repository.install import check_repository, install
from engines.repository.manifest import Manifest
from engines.repository.models import QUEUE_DELAY_US, STUDENT, TEACHER, ModelSet, copy_models, for_teacher
from engines.table import ENGINES
from model_repository.tokenizer.pair_encoding import INPUTS, encoding_hash
from tests import ROOT
from tests.support.repositories import MANIFEST, contents, engine_of, write_checkpoint

PROJECT = ROOT / "model_repository"
TEACHERS = {"teacher", "teacher_tokenizer", "teacher_ranker"}
SMALL = replace(MANIFEST, row_length=96, slots_per_row=6, max_rows=20, checkpoint_hash="of the teacher")
ENGINE = {"manifest.json", "model.bin", "model.xml"}
TOKENIZER = {"tokenizer/tokenizer.json", "tokenizer/pair_encoding.json"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The project's own files of the student, nothing built."""
    copy_models(PROJECT, tmp_path / "models", STUDENT, STUDENT.names)
    return tmp_path / "models"


@pytest.fixture
def with_student(repository: Path, checkpoint: Path) -> Path:
    add(repository, checkpoint, MANIFEST, STUDENT)
    return repository


def add(repository: Path, checkpoint: Path, manifest: Manifest = SMALL, models: ModelSet = TEACHER) -> Path:
    return install(repository, checkpoint, engine_of(checkpoint), manifest, models)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def widths(config: ModelConfig) -> dict[str, int]:
    return {tensor.name: tensor.dims[-1] for tensor in (*config.input, *config.output)}


def packed_widths(row_length: int, slots: int) -> dict[str, int]:
    return {**dict.fromkeys(INPUTS, row_length), "pool_positions": slots}


def test_version_has_engine_manifest_and_server_model(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    version = add(repository, checkpoint, MANIFEST, STUDENT)
    assert version == repository / "student" / "1"
    assert names_in(version) == {*ENGINE, "model.py"}
    manifest = json.loads((version / "manifest.json").read_text())
    assert (manifest["rows_per_call"], manifest["runs_in"], manifest["precision"]) == (8, "fp32", "bf16")
    assert manifest["parity"]["worst"] == [{"query_id": "q", "doc_id": "d", "difference": 0.0}]
    after = contents(repository)
    assert set(after) - set(before) == {*TOKENIZER, *(f"student/1/{name}" for name in names_in(version))}
    assert {name: after[name] for name in before} == before, "configs that fit keep every byte"
    assert after["tokenizer/tokenizer.json"] == b"the new tokenizer.json"


def test_versions_count_up_from_the_highest(repository: Path, checkpoint: Path) -> None:
    (repository / "student" / "9").mkdir()
    (repository / "student" / ".12.partial").mkdir()
    version = add(repository, checkpoint, replace(MANIFEST, served_by=""), STUDENT)
    assert version.name == "10"
    assert not (version / "model.py").exists()


def test_configs_get_the_dimensions_that_differ(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    add(repository, checkpoint, replace(MANIFEST, row_length=512, slots_per_row=8, max_rows=6), STUDENT)
    student, tokenizer = (read_config(repository / name / "config.pbtxt") for name in ("student", "tokenizer"))
    assert (student.max_batch_size, tokenizer.max_batch_size) == (6, 0)
    assert {warmup.batch_size for warmup in student.model_warmup} == {1, 6}
    assert {name: tensor.dims[0] for name, tensor in student.model_warmup[0].inputs.items()} == packed_widths(512, 8)
    assert widths(student) == {**packed_widths(512, 8), "scores": 8}
    assert widths(tokenizer) == {**widths(read_config(PROJECT / "tokenizer/config.pbtxt")), **packed_widths(512, 8)}
    for name in ("config.pbtxt", "configs/cpu.pbtxt", "configs/torch.pbtxt"):
        assert read_config(repository / "student" / name).parameters["max_documents"].string_value == "6"
        assert contents(repository)[f"ranker/{name}"] == before[f"ranker/{name}"]


@pytest.mark.parametrize("case", ["no such engine", "a malformed config", "a folder in the way"])
def test_failure_on_the_way_leaves_everything_as_it_was(with_student: Path, checkpoint: Path, case: str) -> None:
    files, message = engine_of(checkpoint), "cannot be written"
    if case == "no such engine":
        files, message = [checkpoint / "model.plan"], r"model\.plan"
        with pytest.raises(DisRankerError, match=message):
            install(with_student.with_name("new"), checkpoint, files, MANIFEST)
    elif case == "a malformed config":
        (with_student / "ranker/config.pbtxt").write_text("name ranker")
        message = r"ranker/config\.pbtxt: not a Triton model configuration"
    else:  # the last file of the tokenizer cannot be written
        (with_student / "tokenizer/pair_encoding.json").unlink()
        (with_student / "tokenizer/pair_encoding.json").mkdir()
    (checkpoint / "tokenizer.json").write_text("a newer tokenizer.json")
    before = contents(with_student)
    with pytest.raises(DisRankerError, match=message):
        install(with_student, checkpoint, files, replace(MANIFEST, row_length=512))
    assert contents(with_student) == before
    assert not [*with_student.glob("*/.*.partial")]
    assert names_in(with_student.parent) == {"models", "checkpoint"}


@pytest.mark.parametrize("exists", [True, False])
def test_new_repository_is_made_from_the_skeleton_without_what_was_built(
    repository: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr(installer, "SKELETON", repository)
    tracked = set(contents(repository))
    add(repository, checkpoint, MANIFEST, STUDENT)  # built: not to be copied
    (repository / "teacher_student").mkdir()
    new = tmp_path / "deep" / "new"
    if exists:
        new.mkdir(parents=True)
    version = add(new, checkpoint, replace(MANIFEST, served_by=""), STUDENT)
    assert version == new / "student" / "1"
    assert set(contents(new)) == {*tracked, *TOKENIZER, *(f"student/1/{name}" for name in ENGINE)}


def test_other_directories_are_refused(repository: Path, checkpoint: Path) -> None:
    for wrong in (checkpoint, checkpoint / "model.xml"):
        with pytest.raises(EngineError, match=rf"{wrong.name}: not a model repository of ours"):
            check_repository(wrong, ENGINES["openvino"])
    with pytest.raises(EngineError, match="Triton opens plans of tensorrt only"):
        check_repository(PROJECT, ENGINES["tensorrt_rtx"])
    for free in (repository, repository.with_name("new")):
        check_repository(free, ENGINES["tensorrt_rtx"])


@pytest.mark.parametrize("models", [STUDENT, TEACHER])
def test_one_repository_serves_one_kind_of_engine(tmp_path: Path, checkpoint: Path, models: ModelSet) -> None:
    """An engine that the repository's configuration cannot open would stop the server."""
    add(tmp_path / "models", checkpoint, MANIFEST, models)
    check_repository(tmp_path / "models", ENGINES["openvino"])
    message = rf"{models.scorer}/1, which Triton serves, is for openvino.*give tensorrt a --model_repository of its own"
    with pytest.raises(EngineError, match=message):
        check_repository(tmp_path / "models", ENGINES["tensorrt"])


@pytest.mark.parametrize("models", [STUDENT, TEACHER])
def test_code_of_another_release_is_replaced(with_student: Path, checkpoint: Path, models: ModelSet) -> None:
    """Also what an earlier version holds: it runs with the code that lies beside it."""
    first = add(with_student, checkpoint, models=models)
    scorer, tokenizer = with_student / models.scorer, with_student / models.tokenizer
    installed = contents(with_student)
    for path in (first / "model.py", tokenizer / "pair_encoding/config.py"):
        path.write_text("# of an older release\n")
    (scorer / "runtime/openvino_engine.py").unlink()
    (scorer / "hooks.py").write_text("# the user's own\n")
    (scorer / "99").mkdir()
    (scorer / "99/model.py").write_text("# the user's own\n")
    add(with_student, checkpoint, models=models)
    code = {name: content for name, content in contents(with_student).items() if name.endswith(".py")}
    own = {f"{models.scorer}/hooks.py", f"{models.scorer}/99/model.py"}
    assert {code.pop(name) for name in own} == {b"# the user's own\n"}
    assert code.pop(f"{models.scorer}/100/model.py") == installed[f"{models.scorer}/{first.name}/model.py"]
    assert code == {name: content for name, content in installed.items() if name.endswith(".py")}


def test_a_teacher_appears_beside_the_student_and_touches_nothing_of_it(with_student: Path, checkpoint: Path) -> None:
    before = contents(with_student)
    assert add(with_student, checkpoint) == with_student / "teacher" / "1"
    after = contents(with_student)
    assert {name: after[name] for name in before} == before
    assert names_in(with_student) == {*STUDENT.names, *TEACHERS}
    assert names_in(with_student.parent) == {"models", "checkpoint"}
    for name, rows, changed in (
        ("config.pbtxt", 20, {**packed_widths(96, 6), "scores": 6}),
        ("configs/cpu.pbtxt", 0, {}),
    ):
        teacher = read_config(with_student / "teacher" / name)
        assert (teacher.name, teacher.max_batch_size) == ("teacher", rows)
        assert widths(teacher) == {**widths(read_config(PROJECT / "student" / name)), **changed}
        assert teacher.parameters["max_documents"].string_value == "20"
        assert teacher.parameters["version.1"].string_value == SMALL.identity
    tokenizer = read_config(with_student / "teacher_tokenizer/config.pbtxt")
    assert (tokenizer.name, tokenizer.parameters["scored_by"].string_value) == ("teacher_tokenizer", "teacher")
    assert widths(tokenizer).items() >= packed_widths(96, 6).items()
    ranker = read_config(with_student / "teacher_ranker/config.pbtxt")
    assert [step.model_name for step in ranker.ensemble_scheduling.step] == ["teacher_tokenizer", "teacher", "scores"]
    assert (with_student / "teacher_ranker/1").is_dir()  # Triton wants a version
    assert widths(read_config(with_student / "scores/config.pbtxt"))["scores"] == -1


def test_another_version_brings_its_dimensions_and_keeps_what_was_set_by_hand(
    with_student: Path, checkpoint: Path
) -> None:
    add(with_student, checkpoint)
    path = with_student / "teacher/config.pbtxt"
    path.write_text(path.read_text().replace(str(QUEUE_DELAY_US), "77"))
    assert add(with_student, checkpoint, replace(SMALL, row_length=128, checkpoint_hash="of another")).name == "2"
    teacher = read_config(path)
    assert (widths(teacher)["input_ids"], teacher.dynamic_batching.max_queue_delay_microseconds) == (128, 77)
    hashes = {name: "of another" in teacher.parameters[name].string_value for name in ("version.1", "version.2")}
    assert hashes == {"version.1": False, "version.2": True}
    before = contents(with_student)
    assert add(with_student, checkpoint, MANIFEST, STUDENT).parent.name == "student"
    after = contents(with_student).items()
    assert {name: content for name, content in after if not name.startswith("student/2")} == before


def test_a_repository_of_the_teacher_alone_takes_a_student_later(tmp_path: Path, checkpoint: Path) -> None:
    """Without one, models of a student would keep Triton from starting."""
    repository = tmp_path / "alone"
    add(repository, checkpoint)
    assert names_in(repository) == {*TEACHERS, "scores"}
    add(repository, checkpoint, MANIFEST, STUDENT)
    assert names_in(repository) == {*STUDENT.names, *TEACHERS}


def test_all_of_the_teachers_models_appear_or_none(with_student: Path, checkpoint: Path) -> None:
    (with_student / "teacher_ranker").write_text("in the way: the last of them cannot appear")
    before = contents(with_student)
    with pytest.raises(DisRankerError, match="cannot be written"):
        add(with_student, checkpoint)
    assert contents(with_student) == before
    assert names_in(with_student.parent) == {"models", "checkpoint"}
    (with_student / "teacher_ranker").unlink()
    add(with_student, checkpoint)
    shutil.rmtree(with_student / "teacher_tokenizer")  # as if a build had been killed between two of them
    (with_student.parent / ".models.partial").mkdir()
    add(with_student, checkpoint)
    assert names_in(with_student) == {*STUDENT.names, *TEACHERS}
    assert names_in(with_student.parent) == {"models", "checkpoint"}
    assert json.loads((with_student / "teacher/2/manifest.json").read_text())["checkpoint_hash"] == "of the teacher"


def test_the_teacher_waits_for_full_batches_and_refuses_nobody() -> None:
    student = read_config(PROJECT / "student/config.pbtxt")
    student.dynamic_batching.preferred_batch_size[:] = [4, 32]
    student.dynamic_batching.default_queue_policy.max_queue_size = 8
    student.instance_group[0].count = 3
    student.version_policy.specific.versions.append(7)
    teacher = for_teacher(student, TEACHER.names)
    batching = teacher.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([32], QUEUE_DELAY_US)
    assert not batching.HasField("default_queue_policy")
    assert [group.count for group in teacher.instance_group] == [1]
    assert not teacher.HasField("version_policy")
    assert student.name == "student"
    assert not for_teacher(read_config(PROJECT / "tokenizer/config.pbtxt"), TEACHER.names).HasField("dynamic_batching")
    on_processor = for_teacher(read_config(PROJECT / "student/configs/cpu.pbtxt"), TEACHER.names)
    assert on_processor.parameters["max_wait_s"].string_value == "0"


def test_versions_of_the_teacher_are_listed_and_chosen(
    with_student: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--model_repository", str(with_student), "--teacher"]
    assert versions.main(["list", *where]) == 2
    assert "not a model repository of ours with a teacher" in capsys.readouterr().err
    for precision in ("fp32", "bf16"):
        add(with_student, checkpoint, replace(SMALL, precision=precision, encoding_hash=encoding_hash(checkpoint)))
    student = contents(with_student / "student")
    assert versions.main(["use", "1", *where]) == 0
    assert versions.main(["list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{with_student}/teacher: Triton serves version 1"
    assert ["bf16" in line for line in lines[1:]] == [False, True]
    assert [line.endswith(", served") for line in lines[1:]] == [True, False]
    assert versions.main(["use", "3", *where]) == 2
    assert contents(with_student / "student") == student
    assert read_config(with_student / "teacher/config.pbtxt").parameters["version.2"].string_value


def test_engines_that_score_differently_have_different_identities() -> None:
    """By what is in int8, and what the rest is in."""
    int8 = Int8(products=12, kept=(), calibration_queries=8, calibration_rows=8)
    cpu = CpuEngine(rest_in="bf16", cores=2, threads=2, measured=(), int8=int8)
    cpus = [cpu, replace(cpu, rest_in="fp32"), replace(cpu, int8=replace(int8, kept=("layer.0/MatMul",)))]
    engines = [SMALL, *(replace(SMALL, runs_in="int8", cpu=each) for each in cpus)]
    assert len({engine.identity for engine in engines}) == len(engines)
    tuned = replace(SMALL, runs_in="int8", cpu=replace(cpu, cores=64, threads=64))
    assert tuned.identity == engines[1].identity, "how many threads there are changes no score"
