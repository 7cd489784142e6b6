from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.records import DOCUMENT, GROUP, written
from trainer.data.rankings import write_scores
from trainer.data.records import DataError, read_groups


def test_groups_are_read_from_jsonl_and_parquet_alike(tmp_path: Path) -> None:
    groups = read_groups(written(tmp_path / "a.jsonl", GROUP, "", {**GROUP, "query_id": "q2"}))
    assert [group.query_id for group in groups] == ["q1", "q2"]
    assert [document.label for document in groups[0].documents] == [2.0, None]
    pq.write_table(pa.Table.from_pylist([GROUP, {**GROUP, "query_id": "q2"}]), tmp_path / "a.parquet")
    assert read_groups(tmp_path / "a.parquet") == groups


def test_the_weight_of_a_query_is_1_where_it_has_none(tmp_path: Path) -> None:
    records = [GROUP, {**GROUP, "query_id": "q2", "weight": 2.5}, {**GROUP, "query_id": "q3", "weight": 0}]
    pq.write_table(pa.Table.from_pylist(records[::-1]), tmp_path / "a.parquet")  # null where it is left out
    for path in (written(tmp_path / "a.jsonl", *records[::-1]), tmp_path / "a.parquet"):
        assert [group.weight for group in read_groups(path)] == [0.0, 2.5, 1.0]


def test_label_and_clicks_may_be_left_out(tmp_path: Path) -> None:
    document = {"doc_id": "d1", "title": "", "summary": "text"}
    (group,) = read_groups(written(tmp_path / "a.jsonl", {**GROUP, "documents": [document]}))
    assert (group.documents[0].label, group.documents[0].clicks) == (None, 0)


def test_a_title_or_a_summary_may_be_left_out_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    group = {**GROUP, "documents": [{"doc_id": "d1", "summary": "text"}, {"id": "d2", "title": "a title"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(group), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist([group]), tmp_path / "a.parquet")  # null where a field is left out
    for file in ("a.jsonl", "a.parquet"):
        (read,) = read_groups(tmp_path / file)
        assert [(document.doc_id, document.title) for document in read.documents] == [("d1", ""), ("d2", "a title")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"query_id": "q2", ', "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"query": "no id", "documents": [DOCUMENT]}, "no 'query_id'"),
        ({**GROUP, "query_id": 7}, "'query_id' must be a string, not int"),
        ({**GROUP, "query_id": ""}, "no 'query_id'"),
        (GROUP, "query_id 'q1' again; it was in "),
        ({**GROUP, "query_id": "q2", "query": " "}, "query 'q2': the query is empty"),
        ({**GROUP, "query_id": "q2", "weight": -1}, "query 'q2': 'weight' must be a finite number of at least 0"),
        ({**GROUP, "query_id": "q2", "weight": math.inf}, "must be a finite number of at least 0, not inf"),
        ({**GROUP, "query_id": "q2", "weight": int("9" * 400)}, "must be a finite number of at least 0"),
        ({**GROUP, "query_id": "q2", "weight": True}, "must be a finite number of at least 0, not True"),
        ({**GROUP, "query_id": "q2", "weight": "2"}, "must be a finite number of at least 0, not '2'"),
        ({**GROUP, "query_id": "q2", "weight": None}, "must be a finite number of at least 0, not None"),
        (
            {**GROUP, "query_id": "q2", "documents": []},
            "query 'q2': 'documents' must be a list with at least one document",
        ),
        ({**GROUP, "query_id": "q2", "documents": "d"}, "'documents' must be a list"),
        ({**GROUP, "query_id": "q2", "documents": [DOCUMENT, DOCUMENT]}, "query 'q2': doc_id 'd1' comes twice"),
        (
            {**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "title": 3}]},
            "'title' of a document must be a string",
        ),
        ({**GROUP, "query_id": "q2", "documents": [{"doc_id": "d1"}]}, "document 0: a document needs a title"),
        (
            {**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "label": "good"}]},
            "'label' must be a finite number or null, not 'good'",
        ),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "clicks": -1}]}, "'clicks' must be a finite number"),
        ({**GROUP, "query_id": "q2", "documents": ["a text"]}, "query 'q2': document 0 has no 'doc_id'"),
        ({**GROUP, "query_id": "\ud800"}, r"query_id '\ud800' has a lone surrogate"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "doc_id": "\ud800"}]}, "has a lone surrogate"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "label": int("9" * 400)}]}, "must be a finite number"),
        ({**GROUP, "query_id": "q2", "documents": [{**DOCUMENT, "label": math.nan}]}, "must be a finite number"),
        ('{"query_id": "q2", "query": ' + "9" * 5000 + "}", "not JSON that can be read"),
        ("[" * 20_000, "not JSON that can be read"),
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
    pq.write_table(pa.table({"query_id": ["q1"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: no column 'documents'; it has \['query_id'\]"):
        read_groups(tmp_path / "b.parquet")


def test_a_query_that_comes_again_in_another_file_is_named_with_both_places(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", {**GROUP, "query_id": "q0"}, GROUP)
    second = written(tmp_path / "b.jsonl", {**GROUP, "query_id": "q2"}, GROUP)
    with pytest.raises(DataError) as error:
        read_groups(first, second)
    assert str(error.value) == f"{second}:2: query_id 'q1' again; it was in {first}:2"


def test_labels_outside_of_the_scale_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GROUP)
    assert read_groups(path, label_scale=(0, 2)) == read_groups(path)
    with pytest.raises(DataError, match=r"a.jsonl:1: query 'q1': document 0 \('d1'\): label 2 is outside of the scale"):
        read_groups(path, label_scale=(0, 1))


def test_a_file_of_scores_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, [("q1", "d1", 0.5)], teacher="first")
    before = path.read_bytes()

    def broken() -> Iterator[tuple[str, str, float]]:
        yield "q1", "d1", 1.0
        raise DataError("the teacher broke")

    with pytest.raises(DataError, match="the teacher broke"):
        write_scores(path, broken(), teacher="second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.parquet"]
