"""Pairs laid out anew: every one is scored once, as in the rows that it came in, by whichever library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.builders.processors import LIBRARIES, CpuWish, build
from engines.graph.export import export_graph
from engines.parity import Yardstick, torch_runner
from engines.records import Dimensions
from model_repository.student.processor_engine import (
    POOLS,
    SEGMENTS,
    ProcessorEngine,
    Rows,
    Scores,
    cores,
    merge,
    taken_apart,
)
from model_repository.tokenizer.pair_encoding import PairEncoder, unpack
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, write_groups
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.pairs import encode_group
from trainer.data.records import read_groups

ROW_LENGTH, SLOTS = 64, 4
PAIRS = st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=SLOTS), min_size=1, max_size=9)  # lengths, by row


class Reader:
    """Scores a pair by the id at its pool position, and remembers the shapes of its calls."""

    any_length = True

    def __init__(self, length_step: int) -> None:
        self.length_step = length_step
        self.shapes: list[tuple[int, int]] = []

    def infer(self, rows: Rows) -> Scores:
        self.shapes.append((len(rows[0]), rows[0].shape[1]))
        return np.take_along_axis(rows[0], rows[POOLS], axis=1).astype(np.float32)


def packed(pairs: list[list[int]], pool_last: bool) -> Rows:
    """Rows of pairs by their lengths; a token's id says which pair's it is, and whether it is its first or last."""
    arrays = np.zeros((4, len(pairs), ROW_LENGTH), np.int32)
    pools = np.zeros((len(pairs), SLOTS), np.int32)
    for row, lengths in enumerate(pairs):
        ends = np.cumsum(lengths)
        pools[row, : len(lengths)] = ends - 1 if pool_last else ends - lengths
        for slot, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            ids = np.full(length, 1000)
            ids[-1 if pool_last else 0] = 10 * row + slot + 1
            arrays[:, row, end - length : end] = [ids, np.ones(length), np.arange(length), np.full(length, slot + 1)]
    return (*arrays, pools)


@given(PAIRS, st.booleans(), st.integers(1, 5), st.sampled_from([1, 8]))
def test_every_pair_is_scored_once_and_in_its_place(
    pairs: list[list[int]], pool_last: bool, rows_per_call: int, step: int
) -> None:
    reader = Reader(step)
    scores = ProcessorEngine(reader, rows_per_call, ROW_LENGTH).score_packed(packed(pairs, pool_last))  # type: ignore[arg-type]
    for row, lengths in enumerate(pairs):
        read = [10 * row + slot + 1 for slot in range(len(lengths))]
        assert scores[row].tolist() == read + [0] * (SLOTS - len(lengths))
    for rows, length in reader.shapes:
        assert length <= ROW_LENGTH
        assert length % step == 0
        assert rows * length <= 2.2 * (rows_per_call + 1) * ROW_LENGTH


@given(PAIRS, st.booleans())
def test_new_rows_hold_every_token_of_each_pair(pairs: list[list[int]], pool_last: bool) -> None:
    rows = packed(pairs, pool_last)
    work = taken_apart(rows)
    assert work.costs.tolist() == sorted((length for lengths in pairs for length in lengths), reverse=True)
    merged = merge(work.rows, ROW_LENGTH, step=1)
    segments = merged.rows[SEGMENTS]
    assert np.count_nonzero(segments) == sum(map(sum, pairs))
    for array, before in zip(merged.rows[:SEGMENTS], rows[:SEGMENTS], strict=True):
        assert sorted(array[segments > 0].tolist()) == sorted(before[rows[SEGMENTS] > 0].tolist())
    for place, cost in zip(merged.places, work.costs, strict=True):
        positions = merged.rows[2][place.row][segments[place.row] == place.slot + 1]
        assert positions.tolist() == list(range(cost))


def test_like_pairs_get_a_row_each_and_unlike_ones_share() -> None:
    alike = merge(taken_apart(packed([[16, 16, 16, 16]], False)).rows, ROW_LENGTH, step=1)
    assert alike.rows[0].shape == (4, 16)
    unlike = merge(taken_apart(packed([[16, 1, 1, 1], [2, 2, 2, 2]], False)).rows, ROW_LENGTH, step=1)
    assert unlike.rows[0].shape == (2, 16)


def test_a_row_without_tokens_is_scored_too() -> None:
    """A warm-up's."""
    rows = (*np.zeros((4, 3, ROW_LENGTH), np.int32), np.zeros((3, SLOTS), np.int32))
    assert ProcessorEngine(Reader(1), 2, ROW_LENGTH).score_packed(rows).shape == (3, SLOTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_roberta])
def test_a_built_engine_scores_as_pytorch(library: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    of = LIBRARIES[library]()
    graph = export_graph(
        model, Dimensions.of(encoder.config), "fp32", tmp_path / "graph.onnx", of.opset, any_length=True
    )
    groups = read_groups(write_groups(tmp_path / "dev.jsonl", documents=16))
    wish = CpuWish("fp32", rows_per_call=3, calibration=None, most_kept=1)
    built = build(of, graph, wish, Yardstick.of(torch_runner(model), encoder, groups), tmp_path)
    batch = encoder.pack(encode_group(encoder, groups[0].query, groups[0].documents))
    scores = unpack(built.run(batch), batch.slots)
    np.testing.assert_allclose(scores, PackedScorer(model).score(batch), atol=1e-5, rtol=0)

    # Requests of one document each, a row for each: laid together.
    alone = [encoder.pack(encode_group(encoder, groups[0].query, [one])) for one in groups[0].documents]
    joined = tuple(np.concatenate(arrays) for arrays in zip(*(batch[:-1] for batch in alone), strict=True))
    engine = ProcessorEngine(of.kind()(built.files[0], "fp32", cores()), 3, encoder.config.row_length)
    np.testing.assert_allclose(engine.score_packed(joined)[:, 0], scores, atol=1e-5, rtol=0)
