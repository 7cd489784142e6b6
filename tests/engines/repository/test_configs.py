"""A build's dimensions and plans in the configuration for production."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.records import Dimensions
from engines.repository.configs import changed_configs
from tests import ROOT

STUDENT = ROOT / "model_repository/student"
TRACKED = Dimensions(256, 16, 1000)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STUDENT, tmp_path / "student", ignore=shutil.ignore_patterns("[0-9]*")))


def changed(student: Path, dimensions: Dimensions, plans: dict[str, str]) -> ModelConfig:
    config = ModelConfig()
    text_format.Parse(changed_configs([student], dimensions, plans)[student / "config.pbtxt"], config)
    return config


def test_what_fits_stays(student: Path) -> None:
    assert changed_configs([student], TRACKED) == {}


def test_graphs_and_batches_fit_the_largest_request(student: Path) -> None:
    config = changed(student, Dimensions(64, 4, 40), {})
    graphs = [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in config.optimization.cuda.graph_spec]
    assert graphs == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 40)]
    for spec in config.optimization.cuda.graph_spec:
        for inputs in (spec.input, spec.graph_lower_bound.input):
            assert {name: list(shape.dim) for name, shape in inputs.items()} == {
                one.name: list(one.dims) for one in config.input
            }
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16, 32, 40]
    assert max(warmup.batch_size for warmup in config.model_warmup) == 40

    few = changed(student, Dimensions(64, 4, 3), {})
    assert [spec.batch_size for spec in few.optimization.cuda.graph_spec] == [1, 2, 3]
    assert list(few.dynamic_batching.preferred_batch_size) == [3]


def test_plans_are_those_of_the_newest_version_alone(student: Path) -> None:
    config = changed(student, TRACKED, {"8.6": "model.sm86.plan", "8.9": "model.sm89.plan"})
    assert config.cc_model_filenames == {"8.6": "model.sm86.plan", "8.9": "model.sm89.plan"}
    (student / "config.pbtxt").write_text(text_format.MessageToString(config))
    assert changed(student, TRACKED, {"9.0": "model.sm90.plan"}).cc_model_filenames == {"9.0": "model.sm90.plan"}
    assert not changed(student, TRACKED, {}).cc_model_filenames


def test_other_students_have_no_plans(student: Path) -> None:
    assert set(changed_configs([student], TRACKED, {"8.6": "model.sm86.plan"})) == {student / "config.pbtxt"}
