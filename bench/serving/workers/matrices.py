"""The matrix products of an encoder's layers and nothing else, one after another, in the library of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops

TOKENS = 2048
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8 comes from the graph, by quantised inputs
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
RANGE = 4.0  # what int8 stands for: drawn numbers hardly reach beyond


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT's layers."""

    hidden: int
    intermediate: int
    layers: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        return cls(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"])

    def widths(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each product: query, key, value, output, and the feed-forward part's two."""
        hidden, wide = self.hidden, self.intermediate
        return [*[(hidden, hidden)] * 4, (hidden, wide), (wide, hidden)] * self.layers

    def flop_per_token(self) -> int:
        """Two operations for each weight. Attention's own products are not counted."""
        return sum(2 * rows * columns for rows, columns in self.widths())


def in_openvino(shape: Shape, precision: str) -> tuple[Callable[[], object], str]:
    """A function that runs TOKENS tokens through all products, and the type that OpenVINO reports for them."""
    draw = np.random.default_rng(0)
    inputs = ops.parameter([TOKENS, shape.hidden], np.float32)
    last: Any = inputs
    for rows, columns in shape.widths():
        weights: Any = ops.constant(draw.standard_normal((rows, columns), np.float32) / np.sqrt(rows))
        if precision == "int8":
            last, weights = _quantised(last, 256, RANGE), _quantised(weights, 255, RANGE / np.sqrt(rows))
        last = ops.matmul(last, weights, False, False)
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(openvino.Model([last], [inputs]), "CPU", settings)
    tokens = draw.standard_normal((TOKENS, shape.hidden), np.float32)
    return lambda: compiled([tokens]), _runs_in(compiled)


def in_onnxruntime(shape: Shape, precision: str) -> tuple[Callable[[], object], str]:
    """The same in ONNX Runtime. In int8 each product takes whole numbers, rounded from the product before."""
    draw = np.random.default_rng(0)
    last, nodes = "tokens", list[Any]()
    weights: dict[str, Any] = {"zero": np.uint8(128)}
    for number, (rows, columns) in enumerate(shape.widths()):
        drawn = draw.standard_normal((rows, columns), np.float32) / np.sqrt(rows)
        weight, product = f"weight{number}", f"product{number}"
        if precision == "int8":
            scale, rounded = f"scale{number}", f"rounded{number}"
            weights |= {scale: np.float32(2 * RANGE / 255), f"{weight}_scale": np.float32(RANGE / np.sqrt(rows) / 127)}
            weights[weight] = (drawn / weights[f"{weight}_scale"]).round().clip(-64, 64).astype(np.int8)
            nodes.append(helper.make_node("QuantizeLinear", [last, scale, "zero"], [rounded]))
            inputs = [rounded, weight, scale, f"{weight}_scale", "zero"]
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [product], domain=MICROSOFT))
        else:
            weights[weight] = drawn
            nodes.append(helper.make_node("MatMul", [last, weight], [product]))
        last = product
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [TOKENS, shape.hidden])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [TOKENS, shape.hidden])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = draw.standard_normal((TOKENS, shape.hidden), np.float32)
    return lambda: session.run(None, {"tokens": tokens}), {"int8": "u8 by i8"}.get(precision, "f32")


def _quantised(values: Any, levels: int, reach: float) -> Any:
    """Round to ``levels`` whole numbers about zero, which the runtime recognises as int8."""
    step = 2 * reach / (levels - 1)
    low, high = -(levels // 2) * step, ((levels - 1) // 2) * step
    ends = [ops.constant(np.float32(end)) for end in (low, high, low, high)]
    return ops.fake_quantize(values, *ends, levels)


def _runs_in(compiled: Any) -> str:
    """The commonest type of the products."""
    types = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")
    ]
    return max(set(types), key=types.count) if types else "unknown"


CHAINS = {"openvino": in_openvino, "onnxruntime": in_onnxruntime}
