"""Pairs to scores, by whatever library runs the graph."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .graphs import Graph
from .packing import Counts, Fit, FlatPairs, FloatArray, Layout, PackedBatch, Rows, chunks, first_fit, unpack

COARSE_STEP = 32  # between the row lengths that are tried
# A token's part in attention grows with its row: in rows of this length it costs what all else does (MiniLM-L6).
COSTLY_LENGTH = 1200


class PairScorer:
    """A graph that is built for calls of at most ``rows_per_call`` full rows, and the layout of its rows.

    One call at a time: with a second thread that scores and answers, Triton's Python backend (2.51) corrupted its
    memory after some hundred requests. On many cores several instances, which are processes, share them.

    vocabulary: how many token ids the graph knows; 0 for versions of older releases, which do not say it.
    engine_s: how long the graph worked for the latest ``score``.
    """

    engine_s = 0.0

    def __init__(self, graph: Graph, layout: Layout, rows_per_call: int, vocabulary: int = 0) -> None:
        self.graph, self.layout, self.rows_per_call, self.vocabulary = graph, layout, rows_per_call, vocabulary
        self.tokens_per_call = rows_per_call * layout.row_length

    @classmethod
    def load(cls, version: Path, kind: type[Graph], instances: int = 1) -> PairScorer:
        """The engine of a version directory, as the gate judged it."""
        manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
        layout = Layout(*(manifest[name] for name in Layout._fields))
        graph = kind.load(version, manifest, instances)
        return cls(graph, layout, manifest["rows_per_call"], manifest.get("vocabulary", 0))

    def describe(self) -> str:
        """A line for the server's log."""
        return f"{self.graph.describe()}, at most {self.rows_per_call} full rows a call"

    def warm_up(self) -> None:
        """Run a full call and a small one: the first run of an engine allocates its memory, and no user should wait
        for that."""
        count = self.rows_per_call * min(self.layout.row_length, self.layout.slots_per_row)
        single_tokens = np.ones(count, np.int64)
        pairs = FlatPairs(np.zeros(count, np.int32), single_tokens, single_tokens, np.zeros(count, np.bool_))
        self.graph.infer(self.layout.pack(pairs).rows)
        self.score(pairs[:1])

    def score(self, pairs: FlatPairs) -> FloatArray:
        """The scores[P] of one call's pairs, ``tokens_per_call`` tokens at most. Pairs of one or several requests are
        laid out alike: attention sees a pair's own tokens only. A graph for rows of any length gets pairs whose lengths
        differ much one part after the other."""
        any_length, self.engine_s = self.graph.any_length, 0.0
        parts = of_like_length(pairs.lengths, self.graph.run_cost) if any_length else [np.arange(len(pairs))]
        scores = np.empty(len(pairs), np.float32)
        for part in parts:
            chosen = pairs[part]
            batch = lay_out(chosen, self.layout, self.graph.length_step) if any_length else self.layout.pack(chosen)
            scores[part] = unpack(self._infer(batch.rows), batch.slots)
        return scores

    def _infer(self, rows: Rows) -> FloatArray:
        """The graph's ``scores[R, S]``."""
        calls = [rows] if self.graph.any_length else chunks(rows, self.rows_per_call)
        began = time.monotonic()
        scores = np.concatenate([self.graph.infer(each) for each in calls])
        self.engine_s += time.monotonic() - began
        return scores

    def score_all(self, pairs: FlatPairs) -> FloatArray:
        """The scores[N] of any number of pairs, call after call, the longest first as the server takes them."""
        order = np.argsort(-pairs.lengths, kind="stable")
        ends = np.cumsum(pairs.lengths[order])
        bounds = [0]
        while bounds[-1] < len(pairs):
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, before + self.tokens_per_call, "right")))
        scores = np.empty(len(pairs), np.float32)
        for start, stop in pairwise(bounds):
            scores[order[start:stop]] = self.score(pairs[order[start:stop]])
        return scores


def of_like_length(lengths: Counts, run_cost: float) -> list[Counts]:
    """The places[P] of pairs in as many parts as cost least, the longest pairs first.

    A part costs as many tokens as rows of its longest pair have, one a row, and ``run_cost`` tokens beside. Where that
    is infinite, all pairs are one part.
    """
    if math.isinf(run_cost):
        return [np.arange(len(lengths))]
    places = np.argsort(-lengths, kind="stable")
    row_costs = _row_cost(lengths[places])
    costs, starts = np.zeros(len(places) + 1), np.zeros(len(places), np.int64)  # of all pairs before one; of its part
    for end in range(1, len(places) + 1):
        each = costs[:end] + (end - np.arange(end)) * row_costs[:end] + run_cost
        starts[end - 1] = each.argmin()
        costs[end] = each[starts[end - 1]]
    bounds = [len(places)]
    while bounds[0]:
        bounds.insert(0, int(starts[bounds[0] - 1]))
    return [places[start:stop] for start, stop in pairwise(bounds)]


def lay_out(pairs: FlatPairs, layout: Layout, step: int) -> PackedBatch:
    """The pairs of a call in the rows that cost least, of at most ``layout.row_length`` tokens.

    Mostly that is one pair a row, since the pairs of a call are of like length; where lengths differ, short pairs share
    a row, which has as many slots as are needed:

        aaaaa          aaaaaaaaaaaa
        bbbbb          bbbbcccc....
        cccc.          dd..........

    Tried are the length of the longest pair, rounded up to a multiple of ``step``, and longer ones, COARSE_STEP apart.
    """
    shortest = min(-(-int(pairs.lengths.max()) // step) * step, layout.row_length)
    lengths = [*range(shortest, layout.row_length, COARSE_STEP), layout.row_length]
    tried = [(first_fit(pairs.lengths, length, len(pairs)), length) for length in lengths]
    fit, length = min(tried, key=lambda choice: _cost(*choice))
    return layout._replace(row_length=length, slots_per_row=int(fit.places.max()) + 1).filled(pairs, fit)


def _cost(fit: Fit, length: int) -> float:
    return float((1 + fit.rows.max()) * _row_cost(length))


def _row_cost(length: Any) -> Any:
    return length * (1 + length / COSTLY_LENGTH)
