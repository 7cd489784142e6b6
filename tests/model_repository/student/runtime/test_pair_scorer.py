"""Every pair is scored once and in its place, by whichever library, however many share a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.student.runtime.graphs import Graph
from model_repository.student.runtime.packing import INPUTS, FloatArray, Layout, Rows
from model_repository.student.runtime.pair_scorer import PairScorer, of_like_length
from tests.support.pairs import LENGTHS, ROW_LENGTH, pairs_of

SLOTS = 4
RUN_COSTS = [0, 20, math.inf]


class Reader(Graph):
    """Scores a pair by the id at its pool position, and remembers the shapes of its calls."""

    def __init__(self, any_length: bool, length_step: int = 1, run_cost: float = 0) -> None:
        self.any_length, self.length_step, self.run_cost = any_length, length_step, run_cost
        self.shapes: list[tuple[int, ...]] = []

    @classmethod
    def load(cls, version: Path, manifest: dict[str, Any], instances: int) -> Self:
        raise NotImplementedError

    def infer(self, rows: Rows) -> FloatArray:
        named = dict(zip(INPUTS, rows, strict=True))
        self.shapes.append(named["input_ids"].shape)
        return np.take_along_axis(named["input_ids"], named["pool_positions"], axis=1).astype(np.float32)

    def describe(self) -> str:
        return "a reader"


@given(LENGTHS, st.booleans(), st.booleans(), st.integers(1, 5), st.sampled_from([1, 8]), st.sampled_from(RUN_COSTS))
def test_every_pair_is_scored_once_and_in_its_place(
    lengths: list[int], any_length: bool, pool_last: bool, rows_per_call: int, step: int, run_cost: float
) -> None:
    pairs, reader = pairs_of(lengths), Reader(any_length, step, run_cost)
    scores = PairScorer(reader, Layout(ROW_LENGTH, SLOTS, pool_last), rows_per_call).score_all(pairs)
    assert scores.tolist() == [float(pair.token_ids[-1 if pool_last else 0]) for pair in pairs]
    for rows, length in reader.shapes:
        if any_length:
            assert length <= ROW_LENGTH
            assert length % step == 0
            assert rows * length <= 2.2 * (rows_per_call + 1) * ROW_LENGTH
        else:
            assert length == ROW_LENGTH
            assert rows <= rows_per_call


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 80))
def test_calls_of_pairs_of_like_length_cost_least(lengths: list[int], run_cost: int) -> None:
    """Next to all ways to cut the pairs up in the order of their lengths."""
    longest_first = sorted(lengths, reverse=True)

    def cost(sizes: Sequence[int]) -> float:
        longest = [longest_first[start] for start in np.cumsum([0, *sizes[:-1]])]
        slots = [size * row for size, row in zip(sizes, longest, strict=True)]
        return float(sum(each * (1 + row / 1200) + run_cost for each, row in zip(slots, longest, strict=True)))

    parts = of_like_length(np.array(lengths), run_cost)
    assert [lengths[place] for part in parts for place in part] == longest_first
    assert sorted(np.concatenate(parts)) == [*range(len(lengths))]
    cuts = chain.from_iterable(combinations(range(1, len(lengths)), count) for count in range(len(lengths)))
    least = min(cost(np.diff([0, *cut, len(lengths)]).tolist()) for cut in cuts)
    assert cost([len(part) for part in parts]) == pytest.approx(least)


@pytest.mark.parametrize("any_length", [True, False])
def test_it_is_warmed_up_with_a_full_call(any_length: bool) -> None:
    reader = Reader(any_length)
    PairScorer(reader, Layout(ROW_LENGTH, SLOTS), 3).warm_up()
    assert reader.shapes[0] == (3, ROW_LENGTH)
