"""The student's graph in ONNX Runtime, the faster library on processors without units for bf16 and int8."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from .graphs import ProcessorGraph
from .packing import INPUTS, FloatArray, Rows

ERRORS = 3  # the lowest severity that it logs: no notes about what it does to a graph


class OnnxRuntimeEngine(ProcessorGraph):
    """An ONNX file on ``threads`` of this machine's cores. What the graph does not hold in int8 is computed in fp32,
    the only other ``precision``."""

    run_cost = 50  # 30 of a MiniLM-L6 on two cores, where 50 was as fast and makes fewer runs
    file = "model.onnx"
    runs_in = "fp32"

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        if precision != "fp32":
            raise ValueError(f"ONNX Runtime computes in fp32 on processors, not in {precision}")
        self._threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS
        options.enable_mem_pattern = False  # it keeps a plan for each shape that it meets
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.any_length = not any(isinstance(port.shape[1], int) for port in self._session.get_inputs())

    def infer(self, rows: Rows) -> FloatArray:
        scores: FloatArray = self._session.run(["scores"], dict(zip(INPUTS, rows, strict=True)))[0]
        return scores

    def describe(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}, products that are not in int8 in fp32, {self._threads} threads"
