"""Every pair is scored once and in its place, by whichever library, however many share a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.builders import builder_for
from engines.job import BuildArguments, Job
from model_repository.student.runtime.graphs import Graph
from model_repository.student.runtime.packing import INPUTS, FloatArray, Layout, Rows
from model_repository.student.runtime.pair_scorer import PairScorer
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, write_groups
from tests.support.pairs import LENGTHS, ROW_LENGTH, pairs_of
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups

SLOTS = 4
TOLERANCE = 1e-5  # float32 by other kernels, chosen by the shape of a call


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


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_roberta])
def test_a_built_engine_scores_as_pytorch(engine: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Pairs of one request, and pairs of requests of one document each."""
    checkpoint, data = make(tmp_path / "checkpoint"), write_groups(tmp_path / "dev.jsonl", documents=16)
    arguments = BuildArguments(str(checkpoint), [str(data)], engine, "fp32", rows_per_call=3)
    job = Job.of(arguments, tmp_path)
    run = builder_for(arguments).build(job).run
    pairs = encode_groups(job.encoder, read_groups(data)[:1])
    expected = PackedScorer(job.model).score(job.encoder.pack(pairs))
    np.testing.assert_allclose(run(pairs), expected, atol=TOLERANCE, rtol=0)
    alone = np.concatenate([run(pairs[at : at + 1]) for at in range(len(pairs))])
    np.testing.assert_allclose(alone, expected, atol=TOLERANCE, rtol=0)
