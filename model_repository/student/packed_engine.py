"""The student in OpenVINO: packed rows of any number to scores, in chunks of the size it was built for.

A request of one document fills a third of a row, and sixteen of them are sixteen rows. Attention sees a pair's own
segment only, so pairs of several requests may lie in one row: rows that are not full are laid together, and cut where
none has a token left.

Shapes: R rows, L token slots a row, S pairs at most a row; M merged rows of K token slots.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
SEGMENTS, POOLS = INPUTS.index("segment_ids"), INPUTS.index("pool_positions")
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
STEP = 32  # lengths are rounded up to its multiples: the library prepares itself for each length that it meets

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
        self._any_length = self.compiled.inputs[0].partial_shape[1].is_dynamic

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
        if not self._any_length:
            return self._infer(rows)
        merged = merge(rows)
        return unmerge(self._infer(merged.rows), merged)

    def _infer(self, rows: Rows) -> Scores:
        result = self._request.infer(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)


class Place(NamedTuple):
    """Where a row lies: in which merged row, behind how many of its tokens and of its pairs."""

    row: int
    token: int
    slot: int


class Merged(NamedTuple):
    rows: Rows  # [M, K] and [M, S]
    places: list[Place]  # of the R rows
    slots: list[int]  # pairs of the R rows


def merge(rows: Rows) -> Merged:
    """First fit, the fullest row first. Rows without any token (a warm-up's) stay as they are."""
    used = np.count_nonzero(rows[SEGMENTS], axis=1)
    count, length = rows[SEGMENTS].shape
    if not used.all():
        return Merged(rows, [Place(row, 0, 0) for row in range(count)], [rows[POOLS].shape[1]] * count)
    tokens, slots = used.tolist(), rows[SEGMENTS].max(axis=1).tolist()
    places = _first_fit(tokens, slots, length, rows[POOLS].shape[1])
    longest = max(place.token + size for place, size in zip(places, tokens, strict=True))
    shape = 1 + max(place.row for place in places), min(length, -(-longest // STEP) * STEP)
    if shape[0] == count:  # each lies in a row of its own: in that where it was
        cut = tuple(np.ascontiguousarray(array[:, : shape[1]]) for array in rows[:POOLS])
        return Merged((*cut, rows[POOLS]), [Place(row, 0, 0) for row in range(count)], slots)
    together = tuple(np.zeros(shape, np.int32) for _ in rows[:POOLS])
    pools = np.zeros((shape[0], rows[POOLS].shape[1]), np.int32)
    for row, (place, size, pairs) in enumerate(zip(places, tokens, slots, strict=True)):
        for target, source in zip(together, rows[:POOLS], strict=True):
            target[place.row, place.token : place.token + size] = source[row, :size]
        together[SEGMENTS][place.row, place.token : place.token + size] += place.slot
        pools[place.row, place.slot : place.slot + pairs] = rows[POOLS][row, :pairs] + place.token
    return Merged((*together, pools), places, slots)


def unmerge(scores: Scores, merged: Merged) -> Scores:
    """``scores[M, S]`` of merged rows as ``[R, S]``; a slot without a pair has 0."""
    apart = np.zeros((len(merged.places), scores.shape[1]), np.float32)
    for row, (place, pairs) in enumerate(zip(merged.places, merged.slots, strict=True)):
        apart[row, :pairs] = scores[place.row, place.slot : place.slot + pairs]
    return apart


def _first_fit(tokens: list[int], slots: list[int], length: int, most_slots: int) -> list[Place]:
    places = [Place(0, 0, 0)] * len(tokens)
    ends: list[Place] = []  # of what lies in each merged row
    for row in sorted(range(len(tokens)), key=lambda row: -tokens[row]):
        fitting = (end for end in ends if end.token + tokens[row] <= length and end.slot + slots[row] <= most_slots)
        place = next(fitting, Place(len(ends), 0, 0))
        if place.row == len(ends):
            ends.append(place)
        places[row] = place
        ends[place.row] = Place(place.row, place.token + tokens[row], place.slot + slots[row])
    return places


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
