"""The student's graph in ONNX Runtime: on processors without units for bf16 and int8 the faster of the two libraries.

Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
ERRORS = 3  # of the severities that it logs: no notes of what it does to a graph

Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS
Scores = npt.NDArray[np.float32]  # [R, S], logits


class OnnxRuntimeEngine:
    """An ONNX file on ``threads`` of this machine's cores; an ``OpenedGraph`` of processor_engine.py. What the graph
    does not hold in int8 is computed in fp32, the only other ``precision``."""

    length_step = 1
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

    def infer(self, rows: Rows) -> Scores:
        """``scores[R, S]``."""
        scores: Scores = self._session.run(["scores"], dict(zip(INPUTS, rows, strict=True)))[0]
        return scores

    def describe(self) -> str:
        """For the server's log."""
        return f"ONNX Runtime {onnxruntime.__version__}, products that are not in int8 in fp32, {self._threads} threads"

    @staticmethod
    def file() -> str:
        """Its name in a version."""
        return "model.onnx"
