"""The student in OpenVINO: packed rows of any number to scores, in chunks of the size it was built for.

Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS
Scores = npt.NDArray[np.float32]  # [R, S], logits


class PackedEngine:
    """The student's graph (IR or ONNX), compiled for this machine's cores.

    ``precision`` is that of the matrix products: left unsaid, the library would choose by processor.
    """

    def __init__(self, model: Path, precision: str, rows_per_call: int) -> None:
        self.rows_per_call = rows_per_call
        self.workers = 1  # a call uses every core
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)

    @classmethod
    def load(cls, directory: Path) -> PackedEngine:
        """The engine of a version directory, as the gate judged it."""
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return cls(directory / "model.xml", manifest["runs_in"], manifest["rows_per_call"])

    def score(self, rows: Rows) -> Scores:
        """``scores[R, S]`` of any number of rows."""
        size = self.rows_per_call
        starts = range(0, len(rows[0]), size)
        return np.concatenate([self._run(tuple(array[start : start + size] for array in rows)) for start in starts])

    def _run(self, rows: Rows) -> Scores:
        result = self._compiled(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)
