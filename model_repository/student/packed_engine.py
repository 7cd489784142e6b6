"""The student in OpenVINO: packed rows of any number to scores, in chunks of the size it was built for.

Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

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


class Layout(NamedTuple):
    """How many calls run at the same time, and each one's threads."""

    streams: int
    threads: int


class PackedEngine:
    """The student's graph (IR or ONNX), compiled for this machine's cores.

    ``precision`` is that of the matrix products which the graph does not hold in int8: left unsaid, the
    library would choose by processor. ``score`` may be called by ``workers`` threads at the same time; a call
    beyond them waits. ``notes`` say how this machine differs from the one that the engine was built on.
    """

    def __init__(self, model: Path, precision: str, rows_per_call: int, layout: Layout | None = None) -> None:
        streams, threads = layout or Layout(1, cores())
        self.rows_per_call = rows_per_call
        self.workers = streams
        self._threads, self._precision = threads, precision
        self.notes: tuple[str, ...] = ()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
        }
        self.compiled = core().compile_model(model, "CPU", settings)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(self.compiled.create_infer_request())
        self._call_once()

    @classmethod
    def load(cls, directory: Path) -> PackedEngine:
        """The engine of a version directory, as the gate judged it."""
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        tuned, here = manifest["cpu"], cores()
        # One stream, whatever was tuned: with a second thread that scores and answers, Triton's Python backend (2.51)
        # corrupted its memory after some hundred requests.
        layout = Layout(1, min(tuned["streams"] * tuned["threads"], here))
        engine = cls(directory / "model.xml", tuned["rest_in"], manifest["rows_per_call"], layout)
        engine.notes = tuple(_notes(manifest, here))
        return engine

    def _call_once(self) -> None:
        """OpenVINO's first look at numpy in a process, made by two threads at a time, never ends."""
        request, one_row = self._idle.get(), {}
        for port in self.compiled.inputs:
            shape = [size.get_length() if size.is_static else 1 for size in port.partial_shape]
            one_row[port] = np.zeros(shape, dtype=port.element_type.to_dtype())
        np.array(request.infer(one_row)[self.compiled.outputs[0]])
        self._idle.put(request)

    def describe(self) -> str:
        """For the server's log."""
        return (
            f"OpenVINO {openvino.__version__}, products that are not in int8 in {self._precision}, {self.workers} x "
            f"{self._threads} threads, at most {self.rows_per_call} rows a call"
        )

    def score(self, rows: Rows) -> Scores:
        """``scores[R, S]`` of any number of rows."""
        size = self.rows_per_call
        starts = range(0, len(rows[0]), size)
        return np.concatenate([self._run(tuple(array[start : start + size] for array in rows)) for start in starts])

    def _run(self, rows: Rows) -> Scores:
        request = self._idle.get()
        try:
            result = request.infer(dict(zip(INPUTS, rows, strict=True)))
            return np.array(result["scores"], dtype=np.float32)
        finally:
            self._idle.put(request)


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
