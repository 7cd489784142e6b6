"""TensorRT builds without a GPU: the types of the parsed network, and plans for named GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from transformers import PreTrainedModel

from engines.builders import tensorrt
from engines.graph.export import export_graph
from engines.records import OUTPUT, Dimensions, EngineError, Graph
from model_repository.tokenizer.pair_encoding import INPUTS
from tests.support.checkpoints import tiny_bert, tiny_llama
from trainer.checkpoints.load import load_scorer

RTX = "tensorrt_rtx"
DIMENSIONS = Dimensions(row_length=64, slots_per_row=4, max_rows=40)
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# The score head stays in float32: BERT's pooler and classifier, a decoder's score.
HEAD_PRODUCTS = {tiny_bert: 2, tiny_llama: 1}
# Query, key, value, logits, mixing, output and two or three of the feed-forward part, in two layers.
BODY_PRODUCTS = {tiny_bert: 16, tiny_llama: 18}

CAPABILITIES = {
    tiny_bert: {"8.0": "model.sm80.plan", "8.6": "model.sm86.plan", "12.0": "model.sm120.plan"},
    tiny_llama: {"8.9": "model.sm89.plan"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[..., Path], PreTrainedModel]:
    directory = tmp_path_factory.mktemp("models")
    return {maker: load_scorer(maker(directory / maker.__name__)) for maker in (tiny_bert, tiny_llama)}


@pytest.mark.parametrize(
    ("maker", "precision"), [(tiny_bert, "fp32"), (tiny_bert, "fp16"), (tiny_bert, "bf16"), (tiny_llama, "fp16")]
)
def test_types_of_the_network_and_a_plan_for_each_gpu(
    models: dict[Callable[..., Path], PreTrainedModel], maker: Callable[..., Path], precision: str, tmp_path: Path
) -> None:
    graph = export_graph(models[maker], DIMENSIONS, precision, tmp_path / "model.onnx")
    trt = tensorrt.library(RTX)
    network = tensorrt.parse(trt, graph.path).network
    assert [network.get_input(index).name for index in range(network.num_inputs)] == list(INPUTS)
    assert (network.get_output(0).name, network.get_output(0).dtype) == (OUTPUT, trt.float32)

    products = [product.types for product in tensorrt.matrix_products(trt, network)]
    body, head = products[: BODY_PRODUCTS[maker]], products[BODY_PRODUCTS[maker] :]
    assert body == [(TYPES[precision],) * 2] * BODY_PRODUCTS[maker]
    assert head == [("FLOAT", "FLOAT")] * HEAD_PRODUCTS[maker]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    delicate = {trt.LayerType.SOFTMAX, trt.LayerType.NORMALIZATION, trt.LayerType.REDUCE}
    assert {layer.get_input(0).dtype for layer in layers if layer.type in delicate} == {trt.float32}

    named = CAPABILITIES[maker]
    built = tensorrt.build(graph, RTX, list(named), tmp_path)
    assert built.plans == named
    assert [path.name for path in built.files] == list(built.plans.values())
    assert built.runs_in == precision
    assert len({path.read_bytes() for path in built.files}) == len(named), "equal builds give equal bytes"


def test_one_profile_takes_1_to_the_most_rows(
    models: dict[Callable[..., Path], PreTrainedModel], tmp_path: Path
) -> None:
    graph = export_graph(models[tiny_bert], DIMENSIONS, "fp32", tmp_path / "model.onnx")
    trt = tensorrt.library(RTX)
    parsed = tensorrt.parse(trt, graph.path)
    config = tensorrt._config(trt, parsed.builder, graph, "8.6")
    assert config.num_optimization_profiles == 1
    shapes = {parsed.network.get_input(index).name: parsed.network.get_input(index).shape for index in range(5)}
    assert {name: tuple(shape) for name, shape in shapes.items()} == {
        name: (-1, DIMENSIONS.width(name)) for name in INPUTS
    }


def test_unknown_and_missing_compute_capabilities_are_named() -> None:
    with pytest.raises(EngineError, match=r"'9\.0' is not one that .* knows: 7\.5, 8\.0, 8\.6"):
        tensorrt.check_capabilities(RTX, ["8.6", "9.0"], "fp16")
    tensorrt.check_capabilities(RTX, ["7.5", "12.0"], "fp16")


@pytest.mark.parametrize(("precision", "capability", "needed"), [("bf16", "7.5", "8.0"), ("fp8", "8.6", "8.9")])
def test_a_gpu_without_units_for_the_precision_is_refused(precision: str, capability: str, needed: str) -> None:
    with pytest.raises(EngineError, match=f"{precision} needs compute capability {needed} or newer; {capability} has"):
        tensorrt.check_capabilities(RTX, ["12.0", capability], precision)
    tensorrt.check_capabilities(RTX, ["12.0", needed], precision)


def test_what_the_parser_says_is_in_the_error(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="ai.example")
    graph = helper.make_graph([node], "unknown", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="cannot read the graph: NoSuchOperator odd: "):
        tensorrt.build(Graph(tmp_path / "model.onnx", "fp32", DIMENSIONS), RTX, ["8.6"], tmp_path)
    assert not list(tmp_path.glob("*.plan"))
