"""The configurations: one layout across the ensemble, whichever way the student runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelInstanceGroup, ModelOutput

from model_repository.tokenizer.pair_encoding import PackedBatch, PairEncodingConfig

REPOSITORY = Path(__file__).parent.parent / "model_repository"
CONFIGS = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*.pbtxt"))
STUDENTS = ("student/config.pbtxt", "student/configs/cpu.pbtxt")
DEFAULTS = PairEncodingConfig(style="encoder", start_token="[CLS]", end_token="[SEP]")
ROWS = PackedBatch._fields[:-1]


def config(path: str) -> ModelConfig:
    parsed = ModelConfig()
    text_format.Parse((REPOSITORY / path).read_text(encoding="utf-8"), parsed)
    return parsed


def tensors(several: list[ModelInput] | list[ModelOutput], *, rows_batched: bool = False) -> dict[str, tuple[int, ...]]:
    """Type and shape by name; a batching model does not count its batch dimension among them."""
    return {one.name: (one.data_type, *([-1] if rows_batched else []), *one.dims) for one in several}


def student(path: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    parsed = config(path)
    return tensors(parsed.input, rows_batched=True), tensors(parsed.output, rows_batched=True)


@pytest.mark.parametrize("path", CONFIGS)
def test_a_configuration_parses_and_has_its_directorys_name(path: str) -> None:
    assert config(path).name == path.partition("/")[0]


def test_the_four_models_are_there() -> None:
    assert {path.partition("/")[0] for path in CONFIGS} >= {"tokenizer", "student", "scores", "ranker"}
    for model in ("tokenizer", "scores"):
        assert (REPOSITORY / model / "1/model.py").is_file()
    assert (REPOSITORY / "ranker/1").is_dir()


def test_the_tokenizer_gives_the_packed_batch() -> None:
    got = tensors(config("tokenizer/config.pbtxt").output)
    widths = dict.fromkeys(ROWS, DEFAULTS.row_length) | {"pool_positions": DEFAULTS.slots_per_row}
    kind = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    expected: dict[str, tuple[int, ...]] = {
        name: (kind["TYPE_INT32"].number, -1, width) for name, width in widths.items()
    }
    expected["slots"] = (kind["TYPE_INT32"].number, -1)
    expected["TRUNCATED"] = (kind["TYPE_BOOL"].number, -1)
    assert got == expected


@pytest.mark.parametrize("path", STUDENTS)
def test_what_a_step_gives_is_what_the_next_one_takes(path: str) -> None:
    tokenizer, scores, ranker = (config(f"{name}/config.pbtxt") for name in ("tokenizer", "scores", "ranker"))
    student_in, student_out = student(path)
    made = tensors(tokenizer.output)
    assert student_in == {name: made[name] for name in ROWS}
    kind, rows, _ = student_out["scores"]
    any_width = {"scores": (kind, rows, -1)}  # the teacher's rows may have other slots than the student's
    assert tensors(scores.input) == {**any_width, "slots": made["slots"]}
    assert tensors(ranker.input) == tensors(tokenizer.input)
    assert tensors(ranker.output) == {**tensors(scores.output), "TRUNCATED": made["TRUNCATED"]}


def test_the_ensemble_wires_every_tensor_once() -> None:
    ranker = config("ranker/config.pbtxt")
    known = {one.name for one in ranker.input}
    for step in ranker.ensemble_scheduling.step:
        path = f"{step.model_name}/config.pbtxt"
        assert {one.name for one in config(path).input} == set(step.input_map)
        assert {one.name for one in config(path).output} == set(step.output_map)
        assert set(step.input_map.values()) <= known
        assert not set(step.output_map.values()) & known
        known |= set(step.output_map.values())
    assert {one.name for one in ranker.output} <= known


@pytest.mark.parametrize("path", STUDENTS)
def test_the_student_joins_requests_and_takes_the_largest(path: str) -> None:
    parsed = config(path)
    assert parsed.max_batch_size == DEFAULTS.max_documents
    assert 0 < parsed.dynamic_batching.max_queue_delay_microseconds <= 2000
    for warmup in parsed.model_warmup:
        assert {name: (one.data_type, -1, *one.dims) for name, one in warmup.inputs.items()} == student(path)[0]
    assert parsed.model_warmup


def test_only_the_student_joins_requests() -> None:
    assert [config(f"{name}/config.pbtxt").max_batch_size for name in ("tokenizer", "scores", "ranker")] == [0, 0, 0]


def test_the_student_runs_on_the_gpu_unless_the_processor_is_asked_for() -> None:
    production, processor = (config(path) for path in STUDENTS)
    assert production.platform == "tensorrt_plan"
    assert [group.kind for group in production.instance_group] == [ModelInstanceGroup.KIND_GPU]
    assert processor.backend == "python"
    assert [group.kind for group in processor.instance_group] == [ModelInstanceGroup.KIND_CPU]
