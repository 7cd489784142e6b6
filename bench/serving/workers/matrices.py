"""The matrix products of an encoder's layers and nothing else, one after another, in the library of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

TOKENS = 2048
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8 comes from the graph, by quantised inputs
RANGE = 4.0  # what int8 stands for: drawn numbers hardly reach beyond

Widths = Sequence[tuple[int, int]]  # inputs and outputs of each product
Chain = tuple[Callable[[], object], str]  # runs TOKENS tokens through all products; the type that they are computed in


def widths(config: dict[str, Any]) -> Widths:
    """The products of a BERT's layers: query, key, value, output, and the feed-forward part's two."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    return [*[(hidden, hidden)] * 4, (hidden, wide), (wide, hidden)] * config["num_hidden_layers"]


def flop_per_token(products: Widths) -> int:
    """Two operations for each weight. Attention's own products are not counted."""
    return sum(2 * rows * columns for rows, columns in products)


def in_openvino(products: Widths, precision: str) -> Chain:
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(_graph(products, precision)), "CPU", settings)
    types = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")
    ]
    tokens = _drawn(TOKENS, products[0][0])
    return lambda: compiled([tokens]), max(set(types), key=types.count)


def in_onnxruntime(products: Widths, precision: str) -> Chain:
    session = onnxruntime.InferenceSession(_graph(products, precision), providers=["CPUExecutionProvider"])
    tokens = _drawn(TOKENS, products[0][0])
    return lambda: session.run(None, {"tokens": tokens}), {"int8": "u8 by i8"}.get(precision, "f32")


def _graph(products: Widths, precision: str) -> bytes:
    """The products in ONNX. In int8 their inputs are quantised, for which both libraries multiply whole numbers."""
    last, nodes, arrays = "tokens", list[Any](), dict[str, Any]()
    for number, (rows, columns) in enumerate(products):
        weight, product = f"weight{number}", f"product{number}"
        arrays[weight] = _drawn(rows, columns) / np.sqrt(rows)
        if precision == "int8":
            step = np.float32(RANGE / np.sqrt(rows) / 127)
            arrays[weight] = (arrays[weight] / step).round().clip(-64, 64).astype(np.int8)
            arrays |= {f"step{number}": step, "step": np.float32(2 * RANGE / 255), "zero": np.uint8(128)}
            nodes += [
                helper.make_node("QuantizeLinear", [last, "step", "zero"], [f"{last}_int8"]),
                helper.make_node("DequantizeLinear", [f"{last}_int8", "step", "zero"], [f"{last}_again"]),
                helper.make_node("DequantizeLinear", [weight, f"step{number}"], [f"{weight}_again"]),
            ]
            last, weight = f"{last}_again", f"{weight}_again"
        nodes.append(helper.make_node("MatMul", [last, weight], [product]))
        last = product
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, width])
        for name, width in (("tokens", products[0][0]), (last, products[-1][1]))
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _drawn(rows: int, columns: int) -> Any:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


CHAINS = {"openvino": in_openvino, "onnxruntime": in_onnxruntime}
