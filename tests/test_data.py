from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import (
    DataError,
    appears_whole,
    check_known,
    read_groups,
    read_qrels,
    read_run,
    read_scores,
    write_scores,
)

DOCUMENT = {"doc_id": "d1", "title": "A title", "summary": "", "label": 2, "clicks": 1}
GROUP = {"query_id": "q1", "query": "a query", "documents": [DOCUMENT, {**DOCUMENT, "doc_id": "d2", "label": None}]}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_groups_are_read_from_jsonl_and_parquet_alike(tmp_path: Path) -> None:
    groups = read_groups(written(tmp_path / "a.jsonl", GROUP, "", {**GROUP, "query_id": "q2"}))
    assert [group.query_id for group in groups] == ["q1", "q2"]
    assert [document.label for document in groups[0].documents] == [2.0, None]
    pq.write_table(pa.Table.from_pylist([GROUP, {**GROUP, "query_id": "q2"}]), tmp_path / "a.parquet")
    assert read_groups(tmp_path / "a.parquet") == groups


def test_label_and_clicks_may_be_left_out(tmp_path: Path) -> None:
    document = {"doc_id": "d1", "title": "", "summary": "text"}
    (group,) = read_groups(written(tmp_path / "a.jsonl", {**GROUP, "documents": [document]}))
    assert (group.documents[0].label, group.documents[0].clicks) == (None, 0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"query_id": "q2", ', "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"query": "no id", "documents": [DOCUMENT]}, "no field 'query_id'"),
        ({**GROUP, "query_id": 7}, "'query_id' must be a string, not 7"),
        ({**GROUP, "query_id": ""}, "'query_id' is empty"),
        (GROUP, "query_id 'q1' again; it was on line 1"),
        ({**GROUP, "query_id": "q2", "query": " "}, "query 'q2': the query is empty"),
        ({**GROUP, "query_id": "q2", "documents": []}, "query 'q2': no documents"),
        ({**GROUP, "query_id": "q2", "documents": "d"}, "'documents' must be a list"),
        ({**GROUP, "query_id": "q2", "documents": [DOCUMENT, DOCUMENT]}, "doc_id 'd1' twice"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "title": None}]}, "'title' must be a string"),
        ({**GROUP, "query_id": "q2", "documents": [{"doc_id": "d1", "title": ""}]}, "no field 'summary'"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "label": "good"}]}, "'label' must be a number or null"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "clicks": -1}]}, "'clicks' must be a whole number"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, record: object, message: str) -> None:
    path = written(tmp_path / "a.jsonl", GROUP, record)
    with pytest.raises(DataError) as error:
        read_groups(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl: cannot be read"):
        read_groups(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no queries in this file"):
        read_groups(written(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GROUP).encode() + b'\n"\xe9"\n')
    with pytest.raises(DataError, match=r"latin.jsonl:2: not UTF-8"):
        read_groups(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_groups(written(tmp_path / "a.parquet", "text"))


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


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [("q1", "d1", 0.5)], teacher="first")
    before = path.read_bytes()

    def broken() -> Iterator[tuple[str, str, float]]:
        yield "q1", "d1", 1.0
        raise DataError("the teacher broke")

    with pytest.raises(DataError, match="the teacher broke"):
        write_scores(path, broken(), teacher="second")
    with pytest.raises(RuntimeError), appears_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.parquet"]
