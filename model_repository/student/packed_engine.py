"""The student in OpenVINO: packed rows of any number to scores, in chunks of the size it was built for.

A request of one document fills a third of a row, and sixteen of them are sixteen rows. Attention sees a pair's own
segment only, so pairs of several requests may lie in one row, and rows of any length will do: those of a call are laid
out anew, with the fewest empty slots.

Shapes: R rows, L token slots a row, S pairs at most a row; M new rows of K token slots.
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
        return unmerge(self._infer(merged.rows), merged, len(rows[0]))

    def _infer(self, rows: Rows) -> Scores:
        result = self._request.infer(dict(zip(INPUTS, rows, strict=True)))
        return np.array(result["scores"], dtype=np.float32)


class Pair(NamedTuple):
    """Where a pair lies: its row and slot, its first token and how many it has."""

    row: int
    slot: int
    start: int
    size: int


class Merged(NamedTuple):
    """Rows [M, K] and [M, S], of which each pair of the old rows, ``old``, has its place in ``new``."""

    rows: Rows
    old: list[Pair]
    new: list[Pair]


def merge(rows: Rows) -> Merged:
    """The same pairs in rows of the length that leaves the fewest empty slots. Rows without any token (a warm-up's)
    stay as they are."""
    segments, pools = rows[SEGMENTS], rows[POOLS]
    (count, length), most = segments.shape, pools.shape[1]
    taken = np.flatnonzero(segments)
    counts = np.bincount(taken // length * most + segments.reshape(-1)[taken] - 1, minlength=count * most)
    sizes = counts.reshape(count, most)
    if not sizes.any(axis=1).all():
        every = [Pair(row, slot, 0, 0) for row in range(count) for slot in range(most)]
        return Merged(rows, every, every)
    starts = np.cumsum(sizes, axis=1) - sizes  # pairs lie one behind the other, in the order of their slots
    old = [Pair(row, slot, int(starts[row, slot]), int(sizes[row, slot])) for row, slot in np.argwhere(sizes).tolist()]
    old.sort(key=lambda pair: -pair.size)
    shortest = -(-old[0].size // STEP) * STEP
    lengths = [*range(shortest, length, STEP), length]
    tried = [(_first_fit(old, each, most), each) for each in lengths]
    new, chosen = min(tried, key=lambda one: (1 + max(pair.row for pair in one[0])) * one[1])
    shape = 1 + max(pair.row for pair in new), chosen
    together = tuple(np.zeros(shape, np.int32) for _ in rows[:POOLS])
    pooled = np.zeros((shape[0], most), np.int32)
    for was, now in zip(old, new, strict=True):
        for target, source in zip(together, rows[:POOLS], strict=True):
            target[now.row, now.start : now.start + now.size] = source[was.row, was.start : was.start + was.size]
        together[SEGMENTS][now.row, now.start : now.start + now.size] = now.slot + 1
        pooled[now.row, now.slot] = pools[was.row, was.slot] - was.start + now.start
    return Merged((*together, pooled), old, new)


def unmerge(scores: Scores, merged: Merged, count: int) -> Scores:
    """``scores[M, S]`` of merged rows as those of the ``count`` old ones; a slot without a pair has 0."""
    apart = np.zeros((count, scores.shape[1]), np.float32)
    for was, now in zip(merged.old, merged.new, strict=True):
        apart[was.row, was.slot] = scores[now.row, now.slot]
    return apart


def _first_fit(pairs: list[Pair], length: int, slots: int) -> list[Pair]:
    """Each pair, the longest first, in the first row of that length with room and a slot."""
    places = []
    ends: list[Pair] = []  # of each row: the place behind its last pair
    for pair in pairs:
        fitting = (end for end in ends if end.start + pair.size <= length and end.slot < slots)
        place = next(fitting, Pair(len(ends), 0, 0, 0))._replace(size=pair.size)
        places.append(place)
        end = Pair(place.row, place.slot + 1, place.start + pair.size, 0)
        ends[place.row : place.row + 1] = [end]
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
