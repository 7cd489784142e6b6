"""Groups scored by a checkpoint: every pair once, in order, and at most so many rows in a forward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from model_repository.tokenizer.pair_encoding import Rows
from tests.support.checkpoints import tiny_llama, write_groups
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import DataError, read_groups
from trainer.scoring.checkpoint import PackedScoringArguments, named_scores, progress


@pytest.mark.parametrize("rows_per_batch", [1, 3, 1000])
def test_no_forward_has_more_rows_than_asked_for(
    rows_per_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with a query whose documents fill many rows."""
    checkpoint, pool = tiny_llama(tmp_path / "llama"), tmp_path / "pool.jsonl"
    groups = [*read_groups(write_groups(pool, queries=1, documents=90)), *read_groups(write_groups(pool, queries=20))]
    seen: list[int] = []
    start = PackedScorer.start

    def watched(self: PackedScorer, rows: Rows) -> Tensor:
        seen.append(len(rows[0]))
        return start(self, rows)

    monkeypatch.setattr(PackedScorer, "start", watched)
    scorer = PackedScoringArguments(rows_per_batch=rows_per_batch).scorer(str(checkpoint))
    with progress("t", 210) as bar:
        got = list(scorer.scores(groups, bar))
    assert bar.n == len(got) == 210
    assert max(seen) == min(rows_per_batch, sum(seen))
    assert (len(seen) == 1) == (rows_per_batch == 1000)
    assert [row[:2] for row in got] == [(group.query_id, one.doc_id) for group in groups for one in group.documents]
    pairs = encode_groups(scorer._encoder, groups)
    alone = [scorer._scorer.score(scorer._encoder.pack(pairs[at : at + 1]))[0] for at in range(len(pairs))]
    np.testing.assert_allclose([row[2] for row in got], alone, atol=1e-5)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="t: query 'q', document 'e': the score is nan"):
        list(named_scores("t", [("q", "d"), ("q", "e")], [0.5, float("nan")]))
