"""fp8 for GPUs: the linear layers of a half precision graph multiply 8-bit floats (E4M3), by explicit Q/DQ.

Activations have one scale a tensor, from calibration. Weights have one for each output. Attention's own products,
norms and the score head stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from engines.graph.export import onnx_session
from engines.quantise.calibration import Row
from engines.records import EngineError, Graph

BASE = "fp16"  # what surrounds the products: ONNX Runtime, which judges the graph, computes in it too
OPSET = 20  # 19 brought QuantizeLinear to 8-bit floats
E4M3 = ir.DataType.FLOAT8E4M3FN.numpy()
LARGEST = 448.0  # of E4M3
ZERO = "fp8_zero"
SMALLEST_SCALE = 6.2e-5  # the smallest normal float16: scales are held in it


def quantise(graph: Graph, rows: Iterable[Row], path: Path) -> Graph:
    """Write the fp8 form of a float16 graph of OPSET, its activations' ranges taken from ``rows``.

    Raises EngineError without rows, or for activations that are not finite.
    """
    model = ir.load(graph.path)
    linears = body_linears(model)
    largest = _ranges(graph, sorted({linear.inputs[0].name for linear in linears}), rows)
    rounded: dict[Any, Any] = {}
    for linear in linears:
        for side, value in enumerate(linear.inputs):
            if value not in rounded:
                is_weight = value.is_initializer()
                nodes = (
                    _weight(model.graph, value) if is_weight else _activations(model.graph, value, largest[value.name])
                )
                model.graph.insert_before(linear, nodes)
                rounded[value] = nodes[-1].outputs[0]
            linear.replace_input_with(side, rounded[value])
    RemoveUnusedNodesPass()(model)
    ir.save(model, path, external_data=f"{path.name}.data")
    return Graph(path, "fp8", graph.dimensions)


def body_linears(model: ir.Model) -> list[Any]:
    """The linear layers of the body: products with a float16 weight. The score head's weights are float32."""
    halves = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT16]
    return [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1] in halves]


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


def _activations(graph: ir.Graph, tensor: Any, largest: float) -> list[ir.Node]:
    """The nodes that round a tensor to fp8; the last one's output is its rounded form."""
    name = tensor.name
    scale = _held(graph, f"{name}_scale", np.array(max(largest / LARGEST, SMALLEST_SCALE), dtype=np.float16))
    zero = graph.initializers.get(ZERO) or _held(graph, ZERO, np.zeros((), E4M3))
    rounded = ir.Value(name=f"{name}_fp8")
    return [
        ir.node("QuantizeLinear", [tensor, scale, zero], outputs=[rounded], name=f"{name}_q"),
        ir.node("DequantizeLinear", [rounded, scale, zero], outputs=[ir.Value(name=f"{name}_dq")], name=f"{name}_dq"),
    ]


def _weight(graph: ir.Graph, tensor: Any) -> list[ir.Node]:
    """The same for a weight [wide, narrow]: it is held as fp8, with a scale for each of the ``narrow`` outputs."""
    name, values = tensor.name, tensor.const_value.numpy().astype(np.float32)
    scales = np.maximum(np.abs(values).max(axis=0) / LARGEST, SMALLEST_SCALE).astype(np.float16)
    rounded = numpy_helper.saturate_cast(values / scales.astype(np.float32), E4M3)
    inputs = [_held(graph, f"{name}_fp8", rounded), _held(graph, f"{name}_scale", scales)]
    outputs = [ir.Value(name=f"{name}_dq")]
    return [ir.node("DequantizeLinear", inputs, {"axis": 1}, outputs=outputs, name=f"{name}_dq")]


def _held(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A constant of the graph."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
