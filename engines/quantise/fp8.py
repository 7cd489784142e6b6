"""fp8 for GPUs: the linear layers of a half precision graph multiply 8-bit floats (E4M3), by explicit Q/DQ.

Activations have one scale a tensor, from calibration. Weights have one for each output. Attention's own products,
norms and the score head stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.graph.export import onnx_session
from engines.quantise.calibration import Row
from engines.records import EngineError, Graph

BASE = "fp16"  # what surrounds the products: ONNX Runtime, which judges the graph, computes in it too
OPSET = 20  # 19 brought QuantizeLinear to 8-bit floats
LARGEST = 448.0  # of E4M3
ZERO = "fp8_zero"
SMALLEST_SCALE = 6.2e-5  # the smallest normal float16: scales are held in it


class Linear(NamedTuple):
    """A product of activations with a weight [wide, narrow], by the names of its tensors."""

    node: str
    activations: str
    weight: str


class Rounded(NamedTuple):
    """A tensor that goes through fp8: the additions to the graph, and the name of its rounded form."""

    initializers: list[Any]
    nodes: list[Any]
    result: str


def quantise(graph: Graph, rows: Iterable[Row], path: Path) -> Graph:
    """Write the fp8 form of a float16 graph of OPSET, its activations' ranges taken from ``rows``.

    Raises EngineError without rows, or for activations that are not finite.
    """
    model = onnx.load(graph.path)
    linears = {linear.node: linear for linear in body_linears(model)}
    largest = _ranges(graph, sorted({linear.activations for linear in linears.values()}), rows)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    rounded: dict[str, Rounded] = {}
    nodes = []
    for node in model.graph.node:
        if linear := linears.get(node.name):
            for name in (linear.activations, linear.weight):
                if name not in rounded:
                    rounded[name] = _weight(weights[name]) if name in weights else _activations(name, largest[name])
                    nodes += rounded[name].nodes
            node.input[:] = [rounded[name].result for name in (linear.activations, linear.weight)]
        nodes.append(node)
    replace(model.graph.node, nodes)
    zero = helper.make_tensor(ZERO, TensorProto.FLOAT8E4M3FN, [], [0.0])
    kept = [tensor for name, tensor in weights.items() if name not in rounded]
    replace(model.graph.initializer, [*kept, zero, *(one for each in rounded.values() for one in each.initializers)])
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    return Graph(path, "fp8", graph.dimensions)


def body_linears(model: Any) -> list[Linear]:
    """The linear layers of the body: products with a float16 weight. The score head's weights are float32."""
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    products = (node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in halves)
    return [Linear(node.name, *node.input) for node in products]


def _ranges(graph: Graph, names: list[str], rows: Iterable[Row]) -> dict[str, float]:
    """The largest magnitude of each tensor over all rows."""
    observed = onnx.load(graph.path, load_external_data=False)
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names)
    path = graph.path.with_name(f"observed-{graph.path.name}")  # beside the weights, which it shares
    onnx.save(observed, path)
    session = onnx_session(path)
    largest = dict.fromkeys(names, -1.0)
    for row in rows:
        for name, values in zip(names, session.run(names, row), strict=True):
            largest[name] = max(largest[name], float(np.abs(values.astype(np.float32)).max()))
    for name, value in largest.items():
        if not 0 <= value < np.inf:
            raise EngineError(f"fp8 has no range for {name}: --calibration is empty, or float16 overflows there")
    return largest


def _activations(name: str, largest: float) -> Rounded:
    scale = np.array(max(largest / LARGEST, SMALLEST_SCALE), dtype=np.float16)
    names = {part: f"{name}_{part}" for part in ("scale", "fp8", "dq")}
    nodes = [
        helper.make_node("QuantizeLinear", [name, names["scale"], ZERO], [names["fp8"]], name=f"{name}_q"),
        helper.make_node("DequantizeLinear", [names["fp8"], names["scale"], ZERO], [names["dq"]], name=names["dq"]),
    ]
    return Rounded([numpy_helper.from_array(scale, names["scale"])], nodes, names["dq"])


def _weight(tensor: Any) -> Rounded:
    """A weight [wide, narrow] held as fp8, with a scale for each of the ``narrow`` outputs."""
    values = numpy_helper.to_array(tensor).astype(np.float32)
    scales = np.maximum(np.abs(values).max(axis=0) / LARGEST, SMALLEST_SCALE).astype(np.float16)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    held = numpy_helper.saturate_cast(values / scales.astype(np.float32), kind)
    names = {part: f"{tensor.name}_{part}" for part in ("scale", "fp8", "dq")}
    node = helper.make_node("DequantizeLinear", [names["fp8"], names["scale"]], [names["dq"]], name=names["dq"], axis=1)
    initializers = [numpy_helper.from_array(held, names["fp8"]), numpy_helper.from_array(scales, names["scale"])]
    return Rounded(initializers, [node], names["dq"])


def replace(repeated: Any, messages: list[Any]) -> None:
    """Replace the contents of a repeated field; ``messages`` may be some of its own."""
    copies = [copy.deepcopy(message) for message in messages]  # clearing the field takes those that it holds
    del repeated[:]
    repeated.extend(copies)
