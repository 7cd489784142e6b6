"""Pairs laid out anew: every one is scored once, as in the rows that it came in, by whichever library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.arguments import BuildArguments
from engines.builders import builder_for
from engines.job import Job
from engines.library import serving_class
from engines.table import ENGINES
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
from model_repository.tokenizer.pair_encoding import unpack
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, write_groups
from trainer.checkpoints.load import PackedScorer
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


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_roberta])
def test_a_built_engine_scores_as_pytorch(engine: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint, data = make(tmp_path / "checkpoint"), write_groups(tmp_path / "dev.jsonl", documents=16)
    arguments = BuildArguments(str(checkpoint), [str(data)], engine, "fp32", rows_per_call=3)
    job, groups = Job.of(arguments, tmp_path), read_groups(data)
    built = builder_for(arguments).build(job)
    encoder, model = job.encoder, job.model
    batch = encoder.pack(encode_group(encoder, groups[0].query, groups[0].documents))
    scores = unpack(built.run(batch), batch.slots)
    np.testing.assert_allclose(scores, PackedScorer(model).score(batch), atol=1e-5, rtol=0)

    # Requests of one document each, a row for each: laid together.
    alone = [encoder.pack(encode_group(encoder, groups[0].query, [one])) for one in groups[0].documents]
    joined = tuple(np.concatenate(arrays) for arrays in zip(*(batch[:-1] for batch in alone), strict=True))
    opened = serving_class(ENGINES[engine])(built.files[0], "fp32", cores())
    laid_out = ProcessorEngine(opened, 3, encoder.config.row_length)
    np.testing.assert_allclose(laid_out.score_packed(joined)[:, 0], scores, atol=1e-5, rtol=0)
