"""The teacher's models beside the student's: the same files by other names, whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines import versions
from engines.records import CpuEngine, EngineError, Int8
from engines.repository import install as installer
from engines.repository.configs import read_config
from engines.repository.install import check_repository, install
from engines.repository.manifest import Manifest
from engines.repository.models import QUEUE_DELAY_US, STUDENT, TEACHER, ModelSet, for_teacher
from model_repository.tokenizer.pair_encoding import encoding_hash
from tests.support.repositories import MANIFEST, contents, engine_of, write_checkpoint

PROJECT = Path(installer.__file__).parents[2] / "model_repository"
TEACHERS = {"teacher", "teacher_tokenizer", "teacher_ranker"}
SMALL = replace(MANIFEST, row_length=96, slots_per_row=6, max_rows=20, checkpoint_hash="of the teacher")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def repository(tmp_path: Path, checkpoint: Path) -> Path:
    """With a built student, and made of the project's own files."""
    install(tmp_path / "models", checkpoint, engine_of(checkpoint), MANIFEST)
    return tmp_path / "models"


def add(repository: Path, checkpoint: Path, manifest: Manifest = SMALL, models: ModelSet = TEACHER) -> Path:
    return install(repository, checkpoint, engine_of(checkpoint), manifest, models)


def models_of(repository: Path) -> set[str]:
    return {path.name for path in repository.iterdir()}


def widths(config: ModelConfig) -> dict[str, int]:
    return {tensor.name: tensor.dims[-1] for tensor in (*config.input, *config.output)}


def test_a_teacher_appears_beside_the_student_and_touches_nothing_of_it(repository: Path, checkpoint: Path) -> None:
    before = contents(repository)
    assert add(repository, checkpoint) == repository / "teacher" / "1"
    after = contents(repository)
    assert {name: after[name] for name in before} == before
    assert models_of(repository) == {*STUDENT.names, *TEACHERS}
    assert {path.name for path in repository.parent.iterdir()} == {"models", "checkpoint"}
    for name, rows, changed in (("config.pbtxt", 20, widths_of(96, 6)), ("configs/cpu.pbtxt", 0, {})):
        teacher = read_config(repository / "teacher" / name)
        assert (teacher.name, teacher.max_batch_size) == ("teacher", rows)
        assert widths(teacher) == {**widths(read_config(PROJECT / "student" / name)), **changed}
        assert teacher.parameters["max_documents"].string_value == "20"
        assert teacher.parameters["version.1"].string_value == SMALL.identity
    tokenizer = read_config(repository / "teacher_tokenizer/config.pbtxt")
    assert (tokenizer.name, tokenizer.parameters["scored_by"].string_value) == ("teacher_tokenizer", "teacher")
    assert widths(tokenizer).items() >= widths_of(96, 6, scores=False).items()


def widths_of(row_length: int, slots: int, scores: bool = True) -> dict[str, int]:
    rows = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "segment_ids"), row_length)
    return {**rows, "pool_positions": slots, **({"scores": slots} if scores else {})}


@pytest.mark.parametrize("models", [STUDENT, TEACHER])
def test_code_of_another_release_is_replaced(repository: Path, checkpoint: Path, models: ModelSet) -> None:
    """Also what an earlier version holds: it runs with the code that lies beside it."""
    first = add(repository, checkpoint, models=models)
    scorer, tokenizer = repository / models.scorer, repository / models.tokenizer
    installed = contents(repository)
    for path in (first / "model.py", tokenizer / "pair_encoding/config.py"):
        path.write_text("# of an older release\n")
    (scorer / "runtime/openvino_engine.py").unlink()
    (scorer / "hooks.py").write_text("# the user's own\n")
    (scorer / "99").mkdir()
    (scorer / "99/model.py").write_text("# the user's own\n")
    add(repository, checkpoint, models=models)
    code = {name: content for name, content in contents(repository).items() if name.endswith(".py")}
    own = {f"{models.scorer}/hooks.py", f"{models.scorer}/99/model.py"}
    assert {code.pop(name) for name in own} == {b"# the user's own\n"}
    assert code.pop(f"{models.scorer}/100/model.py") == installed[f"{models.scorer}/{first.name}/model.py"]
    assert code == {name: content for name, content in installed.items() if name.endswith(".py")}


def test_the_ensemble_joins_the_teachers_models(repository: Path, checkpoint: Path) -> None:
    add(repository, checkpoint)
    ranker = read_config(repository / "teacher_ranker/config.pbtxt")
    assert [step.model_name for step in ranker.ensemble_scheduling.step] == ["teacher_tokenizer", "teacher", "scores"]
    assert (repository / "teacher_ranker/1").is_dir()  # Triton wants a version
    assert widths(read_config(repository / "scores/config.pbtxt"))["scores"] == -1


def test_another_version_brings_its_dimensions_and_keeps_what_was_set_by_hand(
    repository: Path,
    checkpoint: Path,
) -> None:
    add(repository, checkpoint)
    path = repository / "teacher/config.pbtxt"
    path.write_text(path.read_text().replace(str(QUEUE_DELAY_US), "77"))
    assert add(repository, checkpoint, replace(SMALL, row_length=128, checkpoint_hash="of another")).name == "2"
    teacher = read_config(path)
    assert (widths(teacher)["input_ids"], teacher.dynamic_batching.max_queue_delay_microseconds) == (128, 77)
    assert {
        key: "of another" in value.string_value for key, value in teacher.parameters.items() if "version" in key
    } == {
        "version.1": False,
        "version.2": True,
    }
    before = contents(repository)
    assert add(repository, checkpoint, MANIFEST, STUDENT).parent.name == "student"
    assert {
        name: content for name, content in contents(repository).items() if not name.startswith("student/2")
    } == before


def test_a_repository_of_the_teacher_alone_takes_a_student_later(tmp_path: Path, checkpoint: Path) -> None:
    """Without one, models of a student would keep Triton from starting."""
    repository = tmp_path / "alone"
    add(repository, checkpoint)
    assert models_of(repository) == {*TEACHERS, "scores"}
    check_repository(repository, "openvino")
    with pytest.raises(
        EngineError,
        match=r"teacher/1, which Triton serves, is for openvino.*give tensorrt a --model_repository of its own",
    ):
        check_repository(repository, "tensorrt")
    add(repository, checkpoint, MANIFEST, STUDENT)
    assert models_of(repository) == {*STUDENT.names, *TEACHERS}


def test_all_of_the_teachers_models_appear_or_none(repository: Path, checkpoint: Path) -> None:
    (repository / "teacher_ranker").write_text("in the way: the last of them cannot appear")
    before = contents(repository)
    with pytest.raises(EngineError, match="cannot be written"):
        add(repository, checkpoint)
    assert contents(repository) == before
    assert {path.name for path in repository.parent.iterdir()} == {"models", "checkpoint"}
    (repository / "teacher_ranker").unlink()
    add(repository, checkpoint)
    shutil.rmtree(repository / "teacher_tokenizer")  # as if a build had been killed between two of them
    (repository.parent / ".models.teacher.partial").mkdir()
    add(repository, checkpoint)
    assert models_of(repository) == {*STUDENT.names, *TEACHERS}
    assert json.loads((repository / "teacher/2/manifest.json").read_text())["checkpoint_hash"] == "of the teacher"


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


def test_versions_of_the_teacher_are_listed_and_chosen(
    repository: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--model_repository", str(repository), "--teacher"]
    assert versions.main(["list", *where]) == 2
    assert "not a model repository of ours with a teacher" in capsys.readouterr().err
    for precision in ("fp32", "bf16"):
        add(repository, checkpoint, replace(SMALL, precision=precision, encoding_hash=encoding_hash(checkpoint)))
    student = contents(repository / "student")
    assert versions.main(["use", "1", *where]) == 0
    assert versions.main(["list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{repository}/teacher: Triton serves version 1"
    assert ["bf16" in line for line in lines[1:]] == [False, True]
    assert [line.endswith(", served") for line in lines[1:]] == [True, False]
    assert versions.main(["use", "3", *where]) == 2
    assert contents(repository / "student") == student
    assert read_config(repository / "teacher/config.pbtxt").parameters["version.2"].string_value


def test_engines_that_score_differently_have_different_identities() -> None:
    """By what is in int8, and what the rest is in."""
    int8 = Int8(products=12, kept=(), calibration_queries=8, calibration_rows=8)
    cpu = CpuEngine(rest_in="bf16", cores=2, threads=2, measured=(), int8=int8)
    cpus = [cpu, replace(cpu, rest_in="fp32"), replace(cpu, int8=replace(int8, kept=("layer.0/MatMul",)))]
    engines = [SMALL, *(replace(SMALL, runs_in="int8", cpu=each) for each in cpus)]
    assert len({engine.identity for engine in engines}) == len(engines)
    tuned = replace(SMALL, runs_in="int8", cpu=replace(cpu, cores=64, threads=64))
    assert tuned.identity == engines[1].identity, "how many threads there are changes no score"
