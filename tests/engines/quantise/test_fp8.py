"""fp8 graphs: what is rounded and what is not, how they score, and that builders take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.builders import tensorrt
from engines.builders.stand_in import stand_in
from engines.graph.export import export_graph
from engines.parity import compare
from engines.quantise import fp8
from engines.quantise.calibration import read_calibration
from engines.records import Dimensions, EngineError, Graph
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from trainer.checkpoints.load import load_scorer
from trainer.data.records import read_groups

RTX = "tensorrt_rtx"
# In two layers: query, key, value, output and two or three of the feed-forward part.
LINEARS = {tiny_bert: 12, tiny_llama: 14}
ATTENTION_PRODUCTS = 4  # logits and mixing
HEAD_PRODUCTS = {tiny_bert: 2, tiny_llama: 1}


class Subject(NamedTuple):
    maker: Callable[..., Path]
    half: Graph
    graph: Graph
    mean_kendall_tau: float


@pytest.fixture(scope="module", params=[tiny_bert, tiny_llama])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("fp8")
    checkpoint = request.param(directory / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    groups = read_groups(write_groups(directory / "dev.jsonl", documents=12))
    rows = read_calibration([str(other_queries(directory))], groups, encoder).rows
    half = export_graph(model, Dimensions.of(encoder.config), fp8.BASE, directory / "half.onnx", fp8.OPSET)
    graph = fp8.quantise(half, rows, directory / "model.onnx")
    report = compare(*stand_in(graph), model, encoder, groups)
    return Subject(request.param, half, graph, report.mean_kendall_tau)


def other_queries(directory: Path) -> Path:
    path = write_groups(directory / "log.jsonl", documents=12, seed=1)
    path.write_text(
        path.read_text().replace('"query_id": "q', '"query_id": "log').replace('"query": "', '"query": "a ')
    )
    return path


def test_linear_layers_multiply_fp8_and_nothing_else_does(subject: Subject) -> None:
    trt = tensorrt.library(RTX)
    products = [
        product.types for product in tensorrt.matrix_products(trt, tensorrt.parse(trt, subject.graph.path).network)
    ]
    assert products.count(("FP8", "FP8")) == LINEARS[subject.maker]
    assert products.count(("HALF", "HALF")) == ATTENTION_PRODUCTS
    assert products[-HEAD_PRODUCTS[subject.maker] :] == [("FLOAT", "FLOAT")] * HEAD_PRODUCTS[subject.maker]
    assert len(products) == LINEARS[subject.maker] + ATTENTION_PRODUCTS + HEAD_PRODUCTS[subject.maker]


def test_weights_are_held_in_a_byte_each(subject: Subject) -> None:
    model = onnx.load(subject.graph.path)
    onnx.checker.check_model(str(subject.graph.path))
    held = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
    assert len([tensor for tensor in held if len(tensor.dims) == 2]) == LINEARS[subject.maker]
    assert not fp8.body_linears(model), "no product is left with a float16 weight"
    assert len(fp8.body_linears(onnx.load(subject.half.path))) == LINEARS[subject.maker]


def test_scores_rank_as_the_model_does(subject: Subject) -> None:
    """Far from chance, for three bits of mantissa on a drawn model, whose scores lie close together."""
    assert 0.7 < subject.mean_kendall_tau < 1


def test_gpus_with_fp8_units_get_a_plan_and_others_a_reason(subject: Subject, tmp_path: Path) -> None:
    capabilities = ["8.9", "12.0"] if subject.maker is tiny_bert else ["8.9"]
    built = tensorrt.build(subject.graph, RTX, capabilities, tmp_path)
    assert list(built.plans) == capabilities
    with pytest.raises(EngineError, match=r"for compute capability 8\.6: .*fp8"):
        tensorrt.build(subject.graph, RTX, ["8.6"], tmp_path)


def test_ranges_need_rows(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp8 has no range for"):
        fp8.quantise(subject.half, [], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_each_activation_has_a_scale_of_its_own(subject: Subject) -> None:
    model = onnx.load(subject.graph.path)
    scales = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_scale") and not tensor.dims]
    assert len({float(onnx.numpy_helper.to_array(tensor)) for tensor in scales}) > 2
    assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)) for tensor in scales)
