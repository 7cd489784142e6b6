"""The matrix products of an encoder's layers and nothing else, one after the other, in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

TOKENS = 2048
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8 comes from the graph, by quantised inputs
RANGE = 4.0  # what int8 stands for: drawn numbers hardly reach beyond


@dataclass(frozen=True)
class Shape:
    """Of a BERT's layers."""

    hidden: int
    intermediate: int
    layers: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        return cls(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"])

    def widths(self) -> list[tuple[int, int]]:
        """In and out of each product: query, key, value, the attention's output, and the two of the feed-forward."""
        hidden, wide = self.hidden, self.intermediate
        return [*[(hidden, hidden)] * 4, (hidden, wide), (wide, hidden)] * self.layers

    def flop_per_token(self) -> int:
        """Two for each weight; attention's own products are not counted."""
        return sum(2 * rows * columns for rows, columns in self.widths())


def chain(shape: Shape, precision: str) -> tuple[Callable[[], object], str]:
    """What runs TOKENS tokens through all products, and the type that OpenVINO says they run in."""
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


def _quantised(values: Any, levels: int, reach: float) -> Any:
    """``levels`` whole numbers about zero: what the runtime recognises as int8."""
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
