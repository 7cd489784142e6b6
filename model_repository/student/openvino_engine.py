"""The student's graph in OpenVINO.

Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
PRECISIONS = {hint: precision for precision, hint in HINTS.items()}

Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS
Scores = npt.NDArray[np.float32]  # [R, S], logits


@functools.cache
def core() -> openvino.Core:
    """The one of this process. Each puts an alternate signal stack of its own on the thread, and on leaving puts back
    the one that it found: of two that end in the order of their making, a freed one stays, and the next signal that
    Python handles (Ctrl-C, a child's end) is a segmentation fault."""
    return openvino.Core()


class OpenVinoEngine:
    """An IR or ONNX file, compiled for ``threads`` of this machine's cores; an ``OpenedGraph`` of processor_engine.py.

    ``precision`` is asked for in the matrix products that the graph does not hold in int8. ``runs_in`` is what the
    library computes them in: without units for ``precision`` it takes another.
    """

    length_step = 8  # the library prepares itself for each length that it meets

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        self._threads = threads
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        self.compiled = core().compile_model(model, "CPU", settings)
        self.runs_in = PRECISIONS[self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self._request = self.compiled.create_infer_request()
        self.any_length = all(port.partial_shape[1].is_dynamic for port in self.compiled.inputs)

    def infer(self, rows: Rows) -> Scores:
        """``scores[R, S]``; for one thread at a time."""
        result = self._request.infer(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)

    def describe(self) -> str:
        """For the server's log."""
        return (
            f"OpenVINO {openvino.__version__}, products that are not in int8 in {self.runs_in}, {self._threads} threads"
        )

    @staticmethod
    def file() -> str:
        """Its name in a version."""
        return "model.xml"
