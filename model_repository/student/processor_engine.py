"""Packed rows of any number to scores on a processor's cores, by whatever library runs the graph.

The tokenizer packs a request's pairs into rows of one length: a request of one document is a row, a third full, and
sixteen of them are sixteen rows. Attention sees a pair's own segment only, so pairs may lie in any row beside any
others: here the pairs of each call are laid out anew, in the rows that cost least.

Shapes: R rows, L token slots a row, S pairs at most a row; P pairs; M new rows of K token slots, N pairs at most a row.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
SEGMENTS, POOLS = INPUTS.index("segment_ids"), INPUTS.index("pool_positions")
COARSE_STEP = 32  # between the row lengths that are tried
# A token's part in attention grows with its row: in rows of this length it costs what all else does (MiniLM-L6).
COSTLY_LENGTH = 1200

Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS
Scores = npt.NDArray[np.float32]  # [R, S], logits
Counts = npt.NDArray[np.int64]


class OpenedGraph(Protocol):
    """An opened graph. ``any_length`` says that rows may be shorter than the longest, with fewer slots for pairs;
    lengths are then multiples of ``length_step``, where each new one costs the library time. ``runs_in`` is what the
    library computes products in that the graph does not hold in int8."""

    any_length: bool
    length_step: int
    runs_in: str

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        """``precision`` is asked for in the products that the graph does not hold in int8."""

    def infer(self, rows: Rows) -> Scores:
        """``scores[R, S]``; for one thread at a time."""

    def describe(self) -> str:
        """For the server's log."""

    @staticmethod
    def file() -> str:
        """Its name in a version."""


class Work(NamedTuple):
    """A request as the engine takes it: a row for each pair, the longest first, so that alike ones lie side by side
    (or its rows as they are, for graphs of one length).

    ``costs[P]`` are their tokens, ``places[P]`` where their scores belong in ``shape``, R and S of the request.
    """

    rows: Rows  # [P, tokens of the longest], pool positions [P, 1]
    costs: Counts
    places: Counts
    shape: tuple[int, int]

    def restored(self, scores: Scores) -> Scores:
        """The scores of ``rows`` as those of the request's; a slot without a pair has 0."""
        restored = np.zeros(self.shape, np.float32)
        restored.reshape(-1)[self.places] = scores.reshape(-1)
        return restored


class ProcessorEngine:
    """A graph that is built for calls of at most ``rows_per_call`` full rows. ``notes`` say how this machine differs
    from the one that it was built on.

    One call at a time: with a second thread that scores and answers, Triton's Python backend (2.51) corrupted its
    memory after some hundred requests. On many cores several instances, which are processes, share them.
    """

    def __init__(self, graph: OpenedGraph, rows_per_call: int, row_length: int) -> None:
        self.graph, self.rows_per_call, self.row_length = graph, rows_per_call, row_length
        self.cost_per_call = rows_per_call * row_length if graph.any_length else rows_per_call
        self.notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path, kind: type[OpenedGraph], instances: int = 1) -> ProcessorEngine:
        """The engine of a version directory, as the gate judged it, with its share of the cores."""
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        tuned, here = manifest["cpu"], cores()
        threads = max(1, min(tuned["threads"], here) // instances)
        graph = kind(directory / kind.file(), tuned["rest_in"], threads)
        engine = cls(graph, manifest["rows_per_call"], manifest["row_length"])
        engine.notes = tuple(_notes(tuned, graph.runs_in, here))
        return engine

    def describe(self) -> str:
        """For the server's log."""
        return f"{self.graph.describe()}, at most {self.rows_per_call} full rows a call"

    def prepare(self, rows: Rows) -> Work:
        """A request's rows as ``score`` takes them."""
        if self.graph.any_length:
            return taken_apart(rows)
        count, slots = rows[POOLS].shape
        return Work(rows, np.ones(count, np.int64), np.arange(count * slots), (count, slots))

    def score(self, rows: Rows) -> Scores:
        """Of prepared rows, of one or several requests, that cost ``cost_per_call`` at most in all."""
        if not self.graph.any_length:
            return self.graph.infer(rows)
        merged = merge(rows, self.row_length, self.graph.length_step)
        return merged.unmerged(self.graph.infer(merged.rows))

    def score_packed(self, rows: Rows) -> Scores:
        """``scores[R, S]`` of any number of packed rows, call after call."""
        work = self.prepare(rows)
        bounds = [0]
        while bounds[-1] < len(work.costs):
            ends = np.cumsum(work.costs[bounds[-1] :])
            bounds.append(bounds[-1] + max(1, int(np.searchsorted(ends, self.cost_per_call, "right"))))
        parts = [self.score(tuple(array[a:b] for array in work.rows)) for a, b in pairwise(bounds)]
        return work.restored(np.concatenate(parts))


class Pair(NamedTuple):
    """Where a pair lies: its row and slot, its first token and how many it has."""

    row: int
    slot: int
    start: int
    size: int


class Merged(NamedTuple):
    """Rows [M, K] and [M, N], and the place of each of the P merged rows in them."""

    rows: Rows
    places: list[Pair]

    def unmerged(self, scores: Scores) -> Scores:
        """``scores[M, N]`` as [P, 1]."""
        rows, slots = [place.row for place in self.places], [place.slot for place in self.places]
        return scores[rows, slots][:, None]


def taken_apart(rows: Rows) -> Work:
    """A row for each pair. A row without any token (a warm-up's) counts as a pair of one.

    Raises ValueError for a token of a pair that no slot is for.
    """
    segments, pools = rows[SEGMENTS], rows[POOLS]
    (count, length), slots = segments.shape, pools.shape[1]
    taken = np.flatnonzero(segments)
    pairs_T = taken // length * slots + segments.reshape(-1)[taken] - 1
    if segments.size and not 0 <= segments.min() <= segments.max() <= slots:
        raise ValueError(f"a row has slots for {slots} pairs, and a token is of pair {segments.max()}")
    sizes = np.bincount(pairs_T, minlength=count * slots).reshape(count, slots)
    sizes[~sizes.any(axis=1), 0] = 1
    starts = np.cumsum(sizes, axis=1) - sizes  # pairs lie one behind the other, in the order of their slots
    places = np.flatnonzero(sizes)
    places = places[np.argsort(-sizes.reshape(-1)[places], kind="stable")]
    sizes_P, starts_P = sizes.reshape(-1)[places], starts.reshape(-1)[places]
    columns = np.arange(sizes_P[0])
    inside = columns < sizes_P[:, None]
    sources = np.where(inside, (places // slots * length + starts_P)[:, None] + columns, 0)
    apart = [np.where(inside, array.reshape(-1)[sources], np.int32(0)) for array in rows[:POOLS]]
    apart[SEGMENTS] = inside.astype(np.int32)
    pools_P = (pools.reshape(-1)[places] - starts_P).clip(0, sizes_P - 1).astype(np.int32)
    return Work((*apart, pools_P[:, None]), sizes_P, places, (count, slots))


def merge(rows: Rows, longest: int, step: int) -> Merged:
    """Rows of one pair each in rows of the length that costs least, at most ``longest``, of which no pair is longer.

    Tried are the longest pair's, rounded up to a multiple of ``step``, and longer ones, COARSE_STEP apart.
    """
    sizes = rows[SEGMENTS].sum(axis=1)
    order = np.argsort(-sizes, kind="stable")
    shortest = min(-(-int(sizes.max()) // step) * step, longest)
    lengths = [*range(shortest, longest, COARSE_STEP), longest]
    tried = [(_first_fit(sizes[order].tolist(), length), length) for length in lengths]
    placed, length = min(tried, key=lambda one: _cost(*one))
    shape = 1 + max(place.row for place in placed), length
    together = tuple(np.zeros(shape, np.int32) for _ in rows[:POOLS])
    pooled = np.zeros((shape[0], 1 + max(place.slot for place in placed)), np.int32)
    places = [placed[0]] * len(placed)
    for old, place in zip(order.tolist(), placed, strict=True):
        row, slot, start, size = places[old] = place
        for target, source in zip(together, rows[:POOLS], strict=True):
            target[row, start : start + size] = source[old, :size]
        together[SEGMENTS][row, start : start + size] = slot + 1
        pooled[row, slot] = rows[POOLS][old, 0] + start
    return Merged((*together, pooled), places)


def _first_fit(sizes: list[int], length: int) -> list[Pair]:
    """Each pair, in this order, in the first row of that length with room."""
    placed: list[Pair] = []
    ends: list[tuple[int, int]] = []  # of each row: its pairs, and the place behind the last
    for size in sizes:
        row = next((row for row, (_, end) in enumerate(ends) if end + size <= length), len(ends))
        slot, start = ends[row] if row < len(ends) else (0, 0)
        placed.append(Pair(row, slot, start, size))
        ends[row : row + 1] = [(slot + 1, start + size)]
    return placed


def _cost(placed: list[Pair], length: int) -> float:
    return (1 + max(place.row for place in placed)) * length * (1 + length / COSTLY_LENGTH)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _notes(tuned: dict[str, Any], runs_in: str, available: int) -> list[str]:
    notes = []
    if tuned["rest_in"] != runs_in:
        notes.append(
            f"built to run in {tuned['rest_in']}, and this processor runs it in {runs_in}: scores may differ from "
            "those that the gate saw, and the speed too; build the engine on a machine like this one"
        )
    if tuned["cores"] != available:
        notes.append(
            f"tuned for {tuned['cores']} cores, and here are {available}: build the engine on a machine like this one"
        )
    return notes
