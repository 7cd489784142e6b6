"""Every pair is scored once and in its place, by whichever library, however many share a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.student.runtime.graphs import Graph
from model_repository.student.runtime.packing import INPUTS, FloatArray, Layout, Rows
from model_repository.student.runtime.pair_scorer import PairScorer
from tests.support.pairs import LENGTHS, ROW_LENGTH, pairs_of

SLOTS = 4


class Reader(Graph):
    """Scores a pair by the id at its pool position, and remembers the shapes of its calls."""

    def __init__(self, any_length: bool, length_step: int = 1) -> None:
        self.any_length, self.length_step = any_length, length_step
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


@given(LENGTHS, st.booleans(), st.booleans(), st.integers(1, 5), st.sampled_from([1, 8]))
def test_every_pair_is_scored_once_and_in_its_place(
    lengths: list[int], any_length: bool, pool_last: bool, rows_per_call: int, step: int
) -> None:
    pairs, reader = pairs_of(lengths), Reader(any_length, step)
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


@pytest.mark.parametrize("any_length", [True, False])
def test_it_is_warmed_up_with_a_full_call(any_length: bool) -> None:
    reader = Reader(any_length)
    PairScorer(reader, Layout(ROW_LENGTH, SLOTS), 3).warm_up()
    assert reader.shapes[0] == (3, ROW_LENGTH)
