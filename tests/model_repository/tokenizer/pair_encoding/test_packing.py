"""Flat pairs in rows, of the build's length or as short as they may be: each token once, each pair where it is said to
lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.student.runtime.packing import FlatPairs, Layout, PackedBatch, Pair, chunks, unpack
from model_repository.student.runtime.pair_scorer import lay_out
from tests import ROOT
from tests.support.pairs import LENGTHS, ROW_LENGTH, pairs_of


def assert_holds(batch: PackedBatch, pairs: FlatPairs, layout: Layout) -> None:
    slots = batch.pool_positions.shape[1]
    assert np.count_nonzero(batch.segment_ids) == len(pairs.token_ids)
    assert not batch.position_ids[batch.segment_ids == 0].any()
    for pair, slot, start in zip(pairs, batch.slots.tolist(), batch.starts.tolist(), strict=True):
        row, place = divmod(slot, slots)
        there = batch.segment_ids[row] == place + 1
        assert np.array_equal(batch.input_ids[row, there], pair.token_ids)
        assert np.array_equal(batch.input_ids.reshape(-1)[start : start + len(pair.token_ids)], pair.token_ids)
        assert np.array_equal(batch.position_ids[row, there], np.arange(len(pair.token_ids)) + layout.position_offset)
        on_document = 0 if layout.pool_last else len(pair.token_ids) - pair.document_start
        assert batch.token_type_ids[row, there].sum() == on_document
    pooled = np.take_along_axis(batch.input_ids, batch.pool_positions, axis=1).astype(np.float32)
    ends = [pair.token_ids[-1 if layout.pool_last else 0] for pair in pairs]
    assert unpack(pooled, batch.slots).tolist() == ends, "scores come back in the caller's order"


LAYOUTS = st.builds(Layout, st.just(ROW_LENGTH), st.integers(1, 8), st.booleans(), st.sampled_from([0, 2]))


@given(LENGTHS, LAYOUTS, st.sampled_from([1, 8]))
def test_every_token_is_packed_once_and_the_order_comes_back(lengths: list[int], layout: Layout, step: int) -> None:
    pairs = pairs_of(lengths)
    packed, short = layout.pack(pairs), lay_out(pairs, layout, step)
    assert packed.input_ids.shape[1] == ROW_LENGTH
    assert short.input_ids.shape[1] in range(step, ROW_LENGTH + 1, step)
    assert len(short.input_ids) <= len(lengths)
    for batch in (packed, short):
        assert_holds(batch, pairs, layout)


def test_like_pairs_get_a_row_each_and_unlike_ones_share() -> None:
    layout = Layout(ROW_LENGTH, 4)
    assert lay_out(pairs_of([16, 16, 16, 16]), layout, step=1).input_ids.shape == (4, 16)
    assert lay_out(pairs_of([16, 1, 1, 1, 2, 2, 2, 2]), layout, step=1).input_ids.shape == (2, 16)


@given(LENGTHS, st.integers(1, 8))
def test_each_pair_goes_into_the_first_row_with_room(lengths: list[int], slots: int) -> None:
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [
            row for row in rows if len(row) < slots and sum(lengths[one] for one in row) + lengths[index] <= ROW_LENGTH
        ]
        if not fitting:
            rows.append([])
        (fitting or rows[-1:])[0].append(index)
    slot_of = {index: number * slots + row.index(index) for number, row in enumerate(rows) for index in row}
    packed = Layout(ROW_LENGTH, slots).pack(pairs_of(lengths))
    assert packed.slots.tolist() == [slot_of[index] for index in range(len(lengths))]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (pairs_of([3, ROW_LENGTH + 1]), f"pair 1 has {ROW_LENGTH + 1} tokens; a row has {ROW_LENGTH}"),
        (pairs_of([3])[:0], "no pairs"),
    ],
)
def test_packing_refuses_what_does_not_fit(pairs: FlatPairs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(ROW_LENGTH, 4).pack(pairs)


@given(LENGTHS, st.data())
def test_chosen_pairs_are_those_of_a_list_and_parts_join_again(lengths: list[int], data: st.DataObject) -> None:
    pairs, listed = pairs_of(lengths), [*pairs_of(lengths)]
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
    cut = data.draw(st.integers(0, len(lengths)))
    assert len(pairs) == len(listed) == len(lengths)
    assert_alike(pairs[np.array(chosen, dtype=np.int64)], [listed[index] for index in chosen])
    assert_alike(FlatPairs.join([pairs[:cut], pairs[cut:]]), listed)


def assert_alike(pairs: FlatPairs, expected: Sequence[Pair]) -> None:
    for pair, wanted in zip(pairs, expected, strict=True):
        assert np.array_equal(pair.token_ids, wanted.token_ids)
        assert pair[1:] == wanted[1:]


@given(LENGTHS, st.integers(1, 9))
def test_chunks_are_the_rows_in_order(lengths: list[int], count: int) -> None:
    rows = Layout(ROW_LENGTH, 4).pack(pairs_of(lengths)).rows
    parts = [*chunks(rows, count)]
    assert max(len(part[0]) for part in parts) <= count
    for array, again in zip(rows, map(np.concatenate, zip(*parts, strict=True)), strict=True):
        assert np.array_equal(array, again)


@pytest.mark.parametrize(
    ("students", "tokenizers"),
    [
        ("runtime/packing.py", "pair_encoding/packing.py"),
        ("runtime/admission.py", "admission.py"),
        ("runtime/board.py", "board.py"),
        ("metrics.py", "metrics.py"),
        ("served.py", "served.py"),
    ],
)
def test_student_and_tokenizer_have_the_same_file(students: str, tokenizers: str) -> None:
    """One file: Triton shows a model its own folder only, so a link to it lies in the other's."""
    models = ROOT / "model_repository"
    assert (models / "student" / students).read_bytes() == (models / "tokenizer" / tokenizers).read_bytes()
