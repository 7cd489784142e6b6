"""TensorRT without a GPU: the types of the parsed network, fp8 graphs, plans for named GPUs, the timing cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir
from transformers import PreTrainedModel

from engines.builders import tensorrt
from engines.builders.tensorrt import stand_in
from engines.graph.export import OPSET, export_graph
from engines.parity import Yardstick
from engines.quantise import fp8
from engines.quantise.calibration import read_calibration
from engines.records import OUTPUT, Dimensions, EngineError, Graph
from engines.reference import torch_runner
from model_repository.tokenizer.pair_encoding import INPUTS, PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_modernbert, write_groups
from tests.support.rerankers import tiny_late
from trainer.checkpoints.load import load_scorer
from trainer.data.records import read_groups

RTX = "tensorrt_rtx"
DIMENSIONS = Dimensions(row_length=64, slots_per_row=4, max_rows=40)
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "fp8": "FP8"}
LAYERS = {tiny_bert: 1, tiny_late: 1, tiny_llama: 1, tiny_modernbert: 2}  # of which only the second one sees a window
# In a layer: query, key, value (ModernBERT's are one), output and two or three of the feed-forward part.
LINEARS = {tiny_bert: 6, tiny_late: 6, tiny_llama: 7, tiny_modernbert: 2 * 4}
ATTENTION_PRODUCTS = 2  # in a layer: logits and mixing
# The score head stays in float32: an encoder's dense layer and classifier, a decoder's score, or of late interaction
# the cosines of tokens, the tokens that are alike, the average and the layer behind it.
HEAD_PRODUCTS = {tiny_bert: 2, tiny_late: 4, tiny_llama: 1, tiny_modernbert: 2}
CAPABILITIES = {
    (tiny_bert, "fp32"): {"8.6": "model.sm86.plan"},
    (tiny_bert, "bf16"): {"8.6": "model.sm86.plan"},
    (tiny_llama, "fp16"): {"8.9": "model.sm89.plan"},
    (tiny_modernbert, "fp16"): {"8.0": "model.sm80.plan", "8.6": "model.sm86.plan", "12.0": "model.sm120.plan"},
    (tiny_bert, "fp8"): {"8.9": "model.sm89.plan", "12.0": "model.sm120.plan"},
    (tiny_late, "fp8"): {"8.9": "model.sm89.plan"},
    (tiny_llama, "fp8"): {"8.9": "model.sm89.plan"},
}
Maker = Callable[..., Path]


class Exports:
    """The graphs of tiny models by precision, each made once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[Maker, PreTrainedModel] = {}
        self._graphs: dict[tuple[Maker, str], Graph] = {}
        self.groups = read_groups(write_groups(directory / "dev.jsonl", documents=12))
        self.calibration = [str(write_groups(directory / "log.jsonl", documents=12, seed=1, name="log"))]

    def model(self, maker: Maker) -> PreTrainedModel:
        if maker not in self._models:
            self._models[maker] = load_scorer(maker(self._directory / maker.__name__, layers=LAYERS[maker]))
        return self._models[maker]

    def encoder(self, maker: Maker) -> PairEncoder:
        self.model(maker)
        return PairEncoder.load(self._directory / maker.__name__)

    def graph(self, maker: Maker, precision: str) -> Graph:
        """``half`` is what fp8 is made of."""
        if (maker, precision) not in self._graphs:
            self._graphs[maker, precision] = self._made(maker, precision)
        return self._graphs[maker, precision]

    def _made(self, maker: Maker, precision: str) -> Graph:
        path = self._directory / f"{maker.__name__}.{precision}.onnx"
        if precision == "fp8":
            rows = read_calibration(self.calibration, self.groups, self.encoder(maker)).rows
            return fp8.quantise(self.graph(maker, "half"), rows, path)
        kind, opset = (fp8.BASE, fp8.OPSET) if precision == "half" else (precision, OPSET)
        return export_graph(self.model(maker), Dimensions.of(self.encoder(maker).config), kind, path, opset)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


class Product(NamedTuple):
    """The types of a matrix product's inputs; of a quantised one the type that builders multiply in."""

    left: str
    right: str


def products(trt: Any, network: Any) -> list[Product]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}

    def held_in(tensor: Any) -> str:
        layer = made_by.get(tensor.name)
        while layer is not None and layer.type == trt.LayerType.SHUFFLE:  # a weight gets axes to match
            layer = made_by.get(layer.get_input(0).name)
        if layer is not None and layer.type == trt.LayerType.DEQUANTIZE:
            tensor = layer.get_input(0)
        return str(tensor.dtype.name)

    kinds = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.EINSUM)
    return [Product(*(held_in(layer.get_input(side)) for side in (0, 1))) for layer in layers if layer.type in kinds]


@pytest.mark.parametrize(("maker", "precision"), CAPABILITIES)
def test_types_of_the_network_and_a_plan_for_each_gpu(
    exports: Exports, maker: Maker, precision: str, tmp_path: Path
) -> None:
    graph, named = exports.graph(maker, precision), CAPABILITIES[maker, precision]
    trt = tensorrt.library(RTX)
    parsed = tensorrt.parse(trt, graph.path)  # it must live as long as its network
    network = parsed.network
    shapes = {one.name: tuple(one.shape) for one in map(network.get_input, range(network.num_inputs))}
    assert shapes == {name: (-1, DIMENSIONS.width(name)) for name in INPUTS}
    assert (network.get_output(0).name, network.get_output(0).dtype) == (OUTPUT, trt.float32)

    found, linear, head = products(trt, network), TYPES[precision], HEAD_PRODUCTS[maker]
    attention = "HALF" if precision == "fp8" else linear
    expected = Counter({Product("FLOAT", "FLOAT"): head})
    expected[Product(linear, linear)] += LINEARS[maker]
    expected[Product(attention, attention)] += LAYERS[maker] * ATTENTION_PRODUCTS
    assert Counter(found) == expected
    assert found[-head:] == [("FLOAT", "FLOAT")] * head
    assert "ReduceLogSumExp" not in {node.op_type for node in onnx.load(graph.path).graph.node}  # not stable there
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    delicate = {trt.LayerType.SOFTMAX, trt.LayerType.NORMALIZATION, trt.LayerType.REDUCE}
    assert {layer.get_input(0).dtype for layer in layers if layer.type in delicate} == {trt.float32}

    built = tensorrt.build(graph, RTX, list(named), tmp_path)
    assert built.plans == named
    assert [path.name for path in built.files] == list(named.values())
    assert built.runs_in == precision
    assert len({path.read_bytes() for path in built.files}) == len(named), "equal builds give equal bytes"


def test_one_profile_takes_1_to_the_most_rows(exports: Exports) -> None:
    trt = tensorrt.library(RTX)
    graph = exports.graph(tiny_bert, "fp32")
    parsed = tensorrt.parse(trt, graph.path)
    assert tensorrt._config(trt, parsed.builder, graph, "8.6").num_optimization_profiles == 1


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        ("9.0", "fp16", r"'9\.0' is not one that .* knows: 7\.5, 8\.0, 8\.6"),
        ("7.5", "bf16", r"bf16 needs compute capability 8\.0 or newer; 7\.5 has no units"),
        ("8.6", "fp8", r"fp8 needs compute capability 8\.9 or newer; 8\.6 has no units"),
    ],
)
def test_unknown_gpus_and_those_without_units_are_named(capability: str, precision: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        tensorrt.check_capabilities(RTX, ["12.0", capability], precision)
    for others, another in ((["7.5", "12.0"], "fp16"), (["8.0"], "bf16"), (["8.9"], "fp8")):
        tensorrt.check_capabilities(RTX, others, another)


def test_what_the_parser_says_is_in_the_error(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="ai.example")
    graph = helper.make_graph([node], "unknown", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="cannot read the graph: NoSuchOperator odd: "):
        tensorrt.build(Graph(tmp_path / "model.onnx", "fp32", DIMENSIONS), RTX, ["8.6"], tmp_path)
    assert not list(tmp_path.glob("*.plan"))


def test_what_the_builder_says_is_in_the_error(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"for compute capability 8\.6: .*fp8"):
        tensorrt.build(exports.graph(tiny_bert, "fp8"), RTX, ["8.6"], tmp_path)


@pytest.mark.parametrize("maker", [tiny_bert, tiny_llama])
def test_fp8_weights_take_a_byte_each_and_every_activation_has_its_scale(exports: Exports, maker: Maker) -> None:
    graph = exports.graph(maker, "fp8")
    model = onnx.load(graph.path)
    onnx.checker.check_model(str(graph.path))
    held = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
    assert len([tensor for tensor in held if len(tensor.dims) == 2]) == LINEARS[maker]
    assert not fp8.body_linears(ir.load(graph.path)), "no product is left with a float16 weight"
    scales = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_scale") and not tensor.dims]
    assert len({float(numpy_helper.to_array(tensor)) for tensor in scales}) > 2
    assert all(np.isfinite(numpy_helper.to_array(tensor)) for tensor in scales)


@pytest.mark.parametrize("maker", [tiny_bert, tiny_llama])
def test_fp8_scores_rank_as_the_model_does(exports: Exports, maker: Maker) -> None:
    """Far from chance, for three bits of mantissa on a drawn model, whose scores lie close together."""
    encoder = exports.encoder(maker)
    yardstick = Yardstick.of(torch_runner(exports.model(maker), encoder), encoder, exports.groups)
    assert 0.7 < yardstick.report(*stand_in(exports.graph(maker, "fp8"))).mean_kendall_tau < 1


def test_ranges_need_rows(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp8 has no range for"):
        fp8.quantise(exports.graph(tiny_bert, "half"), [], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_timing_cache_is_written_whole_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorrt_rtx has the functions that tensorrt has, and keeps nothing in its caches."""
    trt = tensorrt.library(RTX)
    config = trt.Builder(tensorrt._log(trt)).create_builder_config()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tensorrt._default_timings(trt, "8.6")
    assert path.parent == tmp_path / "disranker"
    assert trt.__version__ in path.name and path.name.endswith("-8.6.timing")
    with pytest.raises(EngineError, match="no build"), tensorrt._timed(config, path):
        raise EngineError("no build")
    assert not path.exists(), "a build that fails leaves the cache as it was"
    with tensorrt._timed(config, path):
        assert not path.exists()
    content = path.read_bytes()
    assert content
    with tensorrt._timed(config, path):
        assert bytes(config.get_timing_cache().serialize()) == content
    assert [left.name for left in path.parent.iterdir()] == [path.name]
    with pytest.raises(EngineError, match="cannot be read"), tensorrt._timed(config, tmp_path):
        pass
