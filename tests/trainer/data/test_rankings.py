"""Runs, qrels and teacher scores: what is read comes back, what is wrong is named."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.records import GROUP, written
from trainer.data.rankings import ScoreTable, check_known, read_qrels, read_run, read_scores, write_scores
from trainer.data.records import DataError, read_groups


def test_runs_and_qrels(tmp_path: Path) -> None:
    run = read_run(written(tmp_path / "a.run", "q1 Q0 d2 1 9.5 bm25", "q1 Q0 d1 2 9.5 bm25"))
    assert run == {"q1": {"d2": -1.0, "d1": -2.0}}
    assert read_qrels(written(tmp_path / "a.qrels", "q1 0 d1 3", "q1 0 d2 -2")) == {"q1": {"d1": 3.0, "d2": -2.0}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d2 1 9.5", "5 columns where 6 are needed"),
        ("q1 Q0 d1 2 9.5 bm25", "document 'd1' of query 'q1' again"),
        ("q1 Q0 d2 first 9.5 bm25", "'first' is not a whole number"),
    ],
)
def test_a_bad_run_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "a.run", "q1 Q0 d1 1 9.9 bm25", line)
    with pytest.raises(DataError) as error:
        read_run(path)
    assert str(error.value) == f"{path}:2: {message}"


def test_scores_come_back_and_unknown_documents_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [("q1", "d1", 0.5), ("q1", "d9", -1.0)], teacher="t")
    assert pq.read_table(path).column("teacher").to_pylist() == ["t", "t"]
    scores = read_scores(path)
    assert scores == {"q1": {"d1": 0.5, "d9": -1.0}}
    groups = read_groups(written(tmp_path / "a.jsonl", GROUP))
    with pytest.raises(DataError, match="document 'd9' of query 'q1' is not in the data"):
        check_known(scores, groups, path)
    with pytest.raises(DataError, match="query 'q7' is not in the data"):
        check_known({"q7": {}}, groups, path)


def test_scores_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [("q1", "d1", 0.5), ("q1", "d2", float("nan"))], teacher="t")
    with pytest.raises(DataError, match="row 2, query 'q1', document 'd2': the score is nan"):
        read_scores(path)
    write_scores(path, [("q1", "d1", 0.5), ("q1", "d1", 0.5)], teacher="t")
    with pytest.raises(DataError, match="scored twice"):
        read_scores(path)


def test_a_run_with_equal_ranks_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.run", "q1 Q0 d1 1 9.9 x", "q2 Q0 d1 1 9.9 x", "q2 Q0 d7 0 9 x", "q2 Q0 d3 1 8.8 x")
    with pytest.raises(DataError, match="query 'q2': documents 'd1' and 'd3' both have rank 1"):
        read_run(path)


def test_a_table_finds_every_score_in_any_order(tmp_path: Path) -> None:
    rows = [(f"q{number % 7}", f"d{number}", number / 8) for number in range(500)]
    write_scores(tmp_path / "scores.parquet", reversed(rows), teacher="t")
    table = ScoreTable(tmp_path / "scores.parquet")
    assert all(table.get(query_id, doc_id) == score for query_id, doc_id, score in rows)
    assert math.isnan(table.get("q1", "d0"))
    table.check_known()


def test_a_table_names_what_nobody_asked_for_and_what_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [("q1", "d1", 0.5), ("q1", "d2", 0.5), ("q1", "d3", 0.5)], teacher="t")
    table = ScoreTable(path)
    table.get("q1", "d1")
    with pytest.raises(DataError, match=r"row 2: document 'd2' of query 'q1' is not in the data \(2 such rows\)"):
        table.check_known()
    write_scores(path, [("q1", "d1", 0.5), ("q1", "d2", 0.5), ("q1", "d1", 0.7)], teacher="t")
    with pytest.raises(DataError, match="row 3, query 'q1', document 'd1': scored twice"):
        ScoreTable(path)
