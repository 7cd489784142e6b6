"""The configurations: what one model of an ensemble gives is what the next one takes, whichever way it runs."""

from __future__ import annotations

import tomllib

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
)

from client.wire import PARTS
from engines.repository.models import STUDENT, TEACHER, tracked
from model_repository.tokenizer.pair_encoding import INPUTS, PairEncodingConfig
from tests import ROOT

REPOSITORY = ROOT / "model_repository"
CONFIGS = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*.pbtxt"))
ENSEMBLES = ("ranker", "ranker_tokens")
PYTHON = ("configs/cpu.pbtxt", "configs/torch.pbtxt")  # where the student lays out rows itself
STUDENTS = ("student/config.pbtxt", *(f"student/{name}" for name in PYTHON))
FLAT = ("token_ids", "lengths", "document_starts")
DEFAULTS = PairEncodingConfig(style="encoder", start_token="[CLS]", end_token="[SEP]")
ROWS = INPUTS


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


def test_an_installed_package_has_all_of_the_models() -> None:
    """build_engines.py makes repositories of them: beside modules of packages, what package-data names."""
    settings = tomllib.loads((REPOSITORY.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = {path for pattern in settings["package-data"]["model_repository"] for path in REPOSITORY.glob(pattern)}
    assert "model_repository*" in settings["packages"]["find"]["include"]
    modules = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*.py")]
    packaged |= {REPOSITORY / path for path in modules if all(part.isidentifier() for part in path.parts[:-1])}
    for models in (STUDENT, TEACHER):
        for origin in models.names:
            assert set(tracked(REPOSITORY, origin)) <= packaged


def test_the_tokenizer_gives_pairs_flat_and_packed() -> None:
    got = tensors(config("tokenizer/config.pbtxt").output)
    widths = dict.fromkeys(ROWS, DEFAULTS.row_length) | {"pool_positions": DEFAULTS.slots_per_row}
    kind = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    expected: dict[str, tuple[int, ...]] = {
        name: (kind["TYPE_INT32"].number, -1, width) for name, width in widths.items()
    }
    expected |= dict.fromkeys(("slots", *FLAT), (kind["TYPE_INT32"].number, -1))
    expected |= {"TRUNCATED": (kind["TYPE_BOOL"].number, -1), "urgency": (kind["TYPE_FP64"].number, 2)}
    expected |= {"TOKENIZER_MS": (kind["TYPE_FP32"].number, len(PARTS["TOKENIZER_MS"]))}
    assert got == expected


def test_a_plan_takes_packed_rows_and_gives_scores_by_slot() -> None:
    tokenizer, scores = (config(f"{name}/config.pbtxt") for name in ("tokenizer", "scores"))
    student_in, student_out = student("student/config.pbtxt")
    made = tensors(tokenizer.output)
    assert student_in == {name: made[name] for name in ROWS}
    kind, rows, _ = student_out["scores"]
    any_width = {"scores": (kind, rows, -1)}  # the teacher's rows may have other slots than the student's
    assert tensors(scores.input) == {**any_width, "slots": made["slots"]}


@pytest.mark.parametrize("name", PYTHON)
def test_a_student_in_the_python_backend_takes_flat_pairs_and_gives_scores(name: str) -> None:
    served, made = config(f"student/{name}"), tensors(config("tokenizer/config.pbtxt").output)
    assert [one.name for one in served.input if not one.optional] == [*FLAT]
    assert tensors(served.input) == {tensor: made[tensor] for tensor in (*FLAT, "urgency")}
    kind, _ = tensors(served.output)["SCORES"]
    times = {"STUDENT_MS": (kind, len(PARTS["STUDENT_MS"]))}
    assert tensors(served.output) == tensors(config("scores/config.pbtxt").output) | times


@pytest.mark.parametrize("name", ["config.pbtxt", *PYTHON])
def test_ensembles_take_and_give_the_same_however_the_student_runs(name: str) -> None:
    tokenizer, scores = (config(f"{model}/config.pbtxt") for model in ("tokenizer", "scores"))
    ranker, ranker_tokens = (config(f"{ensemble}/{name}") for ensemble in ENSEMBLES)
    assert {**tensors(ranker.input), **tensors(ranker_tokens.input)} == tensors(tokenizer.input)
    made = tensors(tokenizer.output)
    if name in PYTHON:
        made |= tensors(config(f"student/{name}").output)
    answer = {**tensors(scores.output), "TRUNCATED": made["TRUNCATED"]}
    answer |= {times: made[times] for times in PARTS if times in made}
    assert tensors(ranker.output) == tensors(ranker_tokens.output) == answer


@pytest.mark.parametrize("name", ["config.pbtxt", *PYTHON])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_the_ensemble_wires_every_tensor_once(ensemble: str, name: str) -> None:
    ranker = config(f"{ensemble}/{name}")
    known = {one.name for one in ranker.input}
    for step in ranker.ensemble_scheduling.step:
        path = f"{step.model_name}/{name if step.model_name == 'student' else 'config.pbtxt'}"
        taken = {one.name for one in config(path).input if not one.optional or one.name in known}
        assert taken == set(step.input_map)
        assert {one.name for one in config(path).output} >= set(step.output_map)
        assert set(step.input_map.values()) <= known
        assert not set(step.output_map.values()) & known
        known |= set(step.output_map.values())
    assert {one.name for one in ranker.output} <= known
    read = {value for step in ranker.ensemble_scheduling.step for value in step.input_map.values()}
    assert known == read | {one.name for one in ranker.output}, "nothing is made for nobody"


@pytest.mark.parametrize("path", STUDENTS)
def test_every_student_tells_clients_how_many_documents_it_takes(path: str) -> None:
    assert config(path).parameters["max_documents"].string_value == str(DEFAULTS.max_documents)


def test_the_plan_alone_joins_requests_and_takes_the_largest() -> None:
    parsed = config("student/config.pbtxt")
    assert parsed.max_batch_size == DEFAULTS.max_documents
    assert parsed.HasField("dynamic_batching")
    assert {config(f"{name}/config.pbtxt").max_batch_size for name in ("tokenizer", "scores", *ENSEMBLES)} == {0}
    assert parsed.dynamic_batching.max_queue_delay_microseconds <= 2000
    assert [one.name for one in parsed.input] == [*ROWS]
    for warmup in parsed.model_warmup:
        shapes = {name: (one.data_type, -1, *one.dims) for name, one in warmup.inputs.items()}
        assert shapes == student("student/config.pbtxt")[0]
    assert parsed.model_warmup


def test_the_student_runs_on_the_gpu_unless_the_processor_is_asked_for() -> None:
    production, processor, torch = (config(path) for path in STUDENTS)
    assert production.platform == "tensorrt_plan"
    assert [group.kind for group in production.instance_group] == [ModelInstanceGroup.KIND_GPU]
    assert processor.backend == "python"
    assert [group.kind for group in processor.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert torch.backend == "python"
    assert [group.kind for group in torch.instance_group] == [ModelInstanceGroup.KIND_GPU]


def test_production_records_a_graph_for_every_small_batch() -> None:
    """Without gaps: a batch of any size up to the largest graph lies within the bounds of just one."""
    production = config("student/config.pbtxt")
    shapes = {one.name: list(one.dims) for one in production.input}
    served: list[int] = []
    for spec in production.optimization.cuda.graph_spec:
        served += range(spec.graph_lower_bound.batch_size, spec.batch_size + 1)
        for inputs in (spec.input, spec.graph_lower_bound.input):
            assert {name: list(shape.dim) for name, shape in inputs.items()} == shapes
    assert served == list(range(1, max(served) + 1))
    assert production.optimization.cuda.graphs
    graphs = {spec.batch_size for spec in production.optimization.cuda.graph_spec}
    assert set(production.dynamic_batching.preferred_batch_size) <= graphs
    warm = [warmup.batch_size for warmup in production.model_warmup]
    assert (min(warm), max(warm)) == (1, production.max_batch_size)


@pytest.mark.parametrize("name", ["student", "tokenizer"])
def test_tritons_queues_refuse_what_cannot_be_served_in_time(name: str) -> None:
    """Triton takes a request's timeout only up to the default, and for none without one."""
    batching = config(f"{name}/config.pbtxt").dynamic_batching
    policy = batching.default_queue_policy
    assert policy.max_queue_size and policy.default_timeout_microseconds and policy.allow_timeout_override
    assert policy.timeout_action == ModelQueuePolicy.REJECT
    assert (batching.default_priority_level, batching.priority_levels) == (1, 2), "a person waits, unless it is said"
