"""The gate runs an engine's graph on this processor where the engine itself cannot be opened."""

from __future__ import annotations

import numpy as np

from engines.builders import openvino
from engines.graph.onnx_graphs import onnx_session
from engines.records import OUTPUT, Graph, RowRunner, Runner, packed
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray, Rows

ROWS = 8


def stand_in(graph: Graph) -> tuple[Runner, str]:
    """A runner of the graph, and its name in words.

    ONNX Runtime rounds to the graph's types after each operator, so float16 overflows here as it would
    on a GPU. It has no kernels for bfloat16. That type cannot overflow, so OpenVINO computes in float32
    from the rounded weights.
    """
    if graph.precision == "bf16":
        run, name = openvino.open_runner(graph, "fp32", ROWS), "OpenVINO in float32"
    else:
        run, name = packed(_onnxruntime(graph), graph.dimensions.layout, ROWS), "ONNX Runtime"
    return run, f"the engine's graph in {name}; the engine itself was not run, no GPU here opens it"


def _onnxruntime(graph: Graph) -> RowRunner:
    # Optimised, an fp8 graph would have its roundings moved past operators that do not take fp8.
    session = onnx_session(graph.path, optimised=graph.precision != "fp8")

    def run(rows: Rows) -> FloatArray:
        return np.asarray(session.run([OUTPUT], dict(zip(INPUTS, rows, strict=True)))[0])

    return run
