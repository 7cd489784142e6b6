"""Flat pairs in rows: each token once, each pair where it is said to lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.tokenizer.pair_encoding import FlatPairs, Layout, Pair, chunks, unpack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def pairs_of(lengths: list[int]) -> FlatPairs:
    """Pairs whose tokens name their pair: 1000 * pair + place."""
    token_ids = [np.arange(1000 * index, 1000 * index + length) for index, length in enumerate(lengths)]
    sizes = np.array(lengths, dtype=np.int64)
    return FlatPairs(
        np.concatenate([np.empty(0), *token_ids]).astype(np.int32), sizes, sizes // 2, np.zeros(len(lengths), np.bool_)
    )


@given(LENGTHS, st.integers(1, 8), st.booleans(), st.sampled_from([0, 2]))
def test_every_token_is_packed_once_and_the_order_comes_back(
    lengths: list[int], slots: int, pool_last: bool, offset: int
) -> None:
    pairs = pairs_of(lengths)
    batch = Layout(40, slots, pool_last, offset).pack(pairs)
    assert not batch.position_ids[batch.segment_ids == 0].any()
    assert batch.input_ids.shape[1] == 40
    packed = batch.input_ids[batch.segment_ids > 0]
    assert sorted(packed) == sorted(np.concatenate([pair.token_ids for pair in pairs]))
    for pair, slot in zip(pairs, batch.slots, strict=True):
        row, place = divmod(int(slot), slots)
        tokens = batch.segment_ids[row] == place + 1
        assert np.array_equal(batch.input_ids[row, tokens], pair.token_ids)
        assert np.array_equal(batch.position_ids[row, tokens], np.arange(len(pair.token_ids)) + offset)
        assert batch.token_type_ids[row, tokens].sum() == (
            0 if pool_last else len(pair.token_ids) - pair.document_start
        )
        pooled = batch.input_ids[row, batch.pool_positions[row, place]]
        assert pooled == pair.token_ids[-1 if pool_last else 0]


@given(LENGTHS, st.integers(1, 8))
def test_unpack_returns_scores_in_the_callers_order(lengths: list[int], slots: int) -> None:
    batch = Layout(40, slots).pack(pairs_of(lengths))
    first_tokens = np.take_along_axis(batch.input_ids, batch.pool_positions, axis=1).astype(np.float32)
    assert unpack(first_tokens, batch.slots).tolist() == [1000.0 * index for index in range(len(lengths))]


@given(LENGTHS, st.integers(1, 8))
def test_each_pair_goes_into_the_first_row_with_room(lengths: list[int], slots: int) -> None:
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [row for row in rows if len(row) < slots and sum(lengths[one] for one in row) + lengths[index] <= 40]
        if not fitting:
            rows.append([])
        (fitting or rows[-1:])[0].append(index)
    slot_of = {index: number * slots + row.index(index) for number, row in enumerate(rows) for index in row}
    packed = Layout(40, slots).pack(pairs_of(lengths))
    assert packed.slots.tolist() == [slot_of[index] for index in range(len(lengths))]


@given(LENGTHS)
def test_first_fit_decreasing_wastes_less_than_half(lengths: list[int]) -> None:
    rows = Layout(40, 64).pack(pairs_of(lengths)).input_ids.shape[0]
    assert rows <= 2 * sum(lengths) / 40 + 1


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="pair 1 has 41 tokens; a row has 40"):
        Layout(40, 4).pack(pairs_of([3, 41]))
    with pytest.raises(ValueError, match="no pairs"):
        Layout(40, 4).pack(pairs_of([]))


@given(LENGTHS, st.integers(1, 8), st.booleans())
def test_starts_find_each_pairs_tokens_in_the_rows(lengths: list[int], slots: int, pool_last: bool) -> None:
    pairs = pairs_of(lengths)
    batch = Layout(40, slots, pool_last).pack(pairs)
    for pair, start in zip(pairs, batch.starts, strict=True):
        assert np.array_equal(batch.input_ids.reshape(-1)[start : start + len(pair.token_ids)], pair.token_ids)


@given(LENGTHS, st.data())
def test_chosen_pairs_are_those_of_a_list_and_parts_join_again(lengths: list[int], data: st.DataObject) -> None:
    pairs, listed = pairs_of(lengths), [*pairs_of(lengths)]
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
    cut = data.draw(st.integers(0, len(lengths)))
    assert len(pairs) == len(listed) == len(lengths)
    assert_alike(pairs[np.array(chosen, dtype=np.int64)], [listed[index] for index in chosen])
    assert_alike(FlatPairs.join([pairs[:cut], pairs[cut:]]), listed)


def assert_alike(pairs: FlatPairs, expected: list[Pair]) -> None:
    for pair, wanted in zip(pairs, expected, strict=True):
        assert np.array_equal(pair.token_ids, wanted.token_ids)
        assert pair[1:] == wanted[1:]


@given(LENGTHS, st.integers(1, 9))
def test_chunks_are_the_rows_in_order(lengths: list[int], count: int) -> None:
    rows = Layout(40, 4).pack(pairs_of(lengths)).rows
    parts = [*chunks(rows, count)]
    assert max(len(part[0]) for part in parts) <= count
    for array, again in zip(rows, map(np.concatenate, zip(*parts, strict=True)), strict=True):
        assert np.array_equal(array, again)
