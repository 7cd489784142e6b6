"""The student's graph in OpenVINO."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openvino

from .graphs import ProcessorGraph
from .packing import INPUTS, FloatArray, Rows

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
PRECISIONS = {hint: precision for precision, hint in HINTS.items()}


@functools.cache
def core() -> openvino.Core:
    """The one core of this process. Each core puts an alternate signal stack of its own on the thread, and puts back
    the stack that it found when it ends. Of two that end in the order in which they were made a freed stack stays, and
    the next signal that Python handles (Ctrl-C, a child's end) is a segmentation fault."""
    return openvino.Core()


class OpenVinoEngine(ProcessorGraph):
    """An IR or ONNX file, compiled for ``threads`` of this machine's cores."""

    length_step = 8  # the library prepares itself for each length that it meets
    file = "model.xml"

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        self._threads = threads
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        self.compiled = core().compile_model(model, "CPU", settings)
        self.runs_in = PRECISIONS[self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self._request = self.compiled.create_infer_request()
        self.any_length = all(port.partial_shape[1].is_dynamic for port in self.compiled.inputs)

    def computes_int8(self) -> bool:
        return not {"i8", "u8"}.isdisjoint(self.product_types())

    def product_types(self) -> list[str]:
        """The precision in which each product with weights is computed, as OpenVINO names it."""
        operations = [operation.get_rt_info() for operation in self.compiled.get_runtime_model().get_ops()]
        products = [info for info in operations if info["layerType"].get() == "FullyConnected"]
        return [info["runtimePrecision"].get() for info in products]

    def infer(self, rows: Rows) -> FloatArray:
        result = self._request.infer(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)

    def describe(self) -> str:
        return (
            f"OpenVINO {openvino.__version__}, products that are not in int8 in {self.runs_in}, {self._threads} threads"
        )
