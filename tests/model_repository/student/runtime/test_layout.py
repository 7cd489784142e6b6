"""Pairs laid out in rows of any length: each token once, in rows that cost little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.student.runtime.layout import lay_out
from model_repository.student.runtime.packing import Layout
from tests import ROOT
from tests.support.pairs import LENGTHS, ROW_LENGTH, pairs_of


@given(LENGTHS, st.booleans(), st.sampled_from([0, 2]), st.sampled_from([1, 8]))
def test_rows_hold_every_token_of_each_pair(lengths: list[int], pool_last: bool, offset: int, step: int) -> None:
    pairs = pairs_of(lengths)
    batch = lay_out(pairs, Layout(ROW_LENGTH, 4, pool_last, offset), step)
    rows, slots = batch.pool_positions.shape
    assert batch.input_ids.shape[1] <= ROW_LENGTH
    assert batch.input_ids.shape[1] % step == 0
    assert np.count_nonzero(batch.segment_ids) == sum(lengths)
    for pair, slot in zip(pairs, batch.slots, strict=True):
        row, place = divmod(int(slot), slots)
        there = batch.segment_ids[row] == place + 1
        assert np.array_equal(batch.input_ids[row, there], pair.token_ids)
        assert np.array_equal(batch.position_ids[row, there], np.arange(len(pair.token_ids)) + offset)
        on_document = 0 if pool_last else len(pair.token_ids) - pair.document_start
        assert batch.token_type_ids[row, there].sum() == on_document
        assert batch.input_ids[row, batch.pool_positions[row, place]] == pair.token_ids[-1 if pool_last else 0]
    assert rows <= len(lengths)


def test_like_pairs_get_a_row_each_and_unlike_ones_share() -> None:
    layout = Layout(ROW_LENGTH, 4)
    assert lay_out(pairs_of([16, 16, 16, 16]), layout, step=1).input_ids.shape == (4, 16)
    assert lay_out(pairs_of([16, 1, 1, 1, 2, 2, 2, 2]), layout, step=1).input_ids.shape == (2, 16)


@pytest.mark.parametrize("links", [("packing.py", "pair_encoding/packing.py"), ("../served.py", "served.py")])
def test_student_and_tokenizer_have_the_same_file(links: tuple[str, str]) -> None:
    """One file: Triton shows a model its own folder only, so a link to it lies in the other's."""
    one, other = (ROOT / "model_repository" / place for place in ("student/runtime", "tokenizer"))
    assert (one / links[0]).read_bytes() == (other / links[1]).read_bytes()
