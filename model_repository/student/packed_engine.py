"""The student in OpenVINO: packed rows of any number to scores, in chunks of the size it was built for.

Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS
Scores = npt.NDArray[np.float32]  # [R, S], logits


@functools.cache
def core() -> openvino.Core:
    """The one of this process. Each puts an alternate signal stack of its own on the thread, and on leaving puts back
    the one that it found: of two that end in the order of their making, a freed one stays, and the next signal that
    Python handles (Ctrl-C, a child's end) is a segmentation fault."""
    return openvino.Core()


class PackedEngine:
    """The student's graph (IR or ONNX), compiled for this machine's cores.

    ``precision`` is that of the matrix products which the graph does not hold in int8: left unsaid, the
    library would choose by processor. ``threads`` share each call, by default one for each core. ``score`` is for one
    thread at a time. ``notes`` say how this machine differs from the one that the engine was built on.

    One stream, that is: with a second thread that scores and answers, Triton's Python backend (2.51) corrupted its
    memory after some hundred requests. On many cores several instances, which are processes, take the place of streams.
    """

    def __init__(self, model: Path, precision: str, rows_per_call: int, threads: int | None = None) -> None:
        self.rows_per_call = rows_per_call
        self._threads, self._precision = threads or cores(), precision
        self.notes: tuple[str, ...] = ()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
        }
        self.compiled = core().compile_model(model, "CPU", settings)
        self._request = self.compiled.create_infer_request()

    @classmethod
    def load(cls, directory: Path, instances: int = 1) -> PackedEngine:
        """The engine of a version directory, as the gate judged it, with its share of the cores."""
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        tuned, here = manifest["cpu"], cores()
        threads = max(1, min(tuned["threads"], here) // instances)
        engine = cls(directory / "model.xml", tuned["rest_in"], manifest["rows_per_call"], threads)
        engine.notes = tuple(_notes(manifest, here))
        return engine

    def describe(self) -> str:
        """For the server's log."""
        return (
            f"OpenVINO {openvino.__version__}, products that are not in int8 in {self._precision}, "
            f"{self._threads} threads, at most {self.rows_per_call} rows a call"
        )

    def score(self, rows: Rows) -> Scores:
        """``scores[R, S]`` of any number of rows."""
        size = self.rows_per_call
        starts = range(0, len(rows[0]), size)
        return np.concatenate([self._run(tuple(array[start : start + size] for array in rows)) for start in starts])

    def _run(self, rows: Rows) -> Scores:
        result = self._request.infer(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def units() -> set[str]:
    """The precisions that this processor computes in, by our names (fp32, bf16, fp16, int8)."""
    return {name.lower() for name in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")}


def _notes(manifest: dict[str, Any], available: int) -> list[str]:
    notes = []
    for precision in dict.fromkeys((manifest["runs_in"], manifest["cpu"]["rest_in"])):
        if precision not in units():
            notes.append(
                f"built to run in {precision}, which this processor has no units for: scores may differ from those "
                "that the gate saw, and it will be slower; build the engine on a machine like this one"
            )
    if manifest["cpu"]["cores"] != available:
        notes.append(
            f"tuned for {manifest['cpu']['cores']} cores, and here are {available}: build the engine on a machine "
            "like this one"
        )
    return notes
