"""Parquet columns of every wrong type: one line that names the file, the row and the column."""

from __future__ import annotations

import datetime
import decimal
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.stages import fails
from trainer import evaluate
from trainer.data.rankings import ScoreTable
from trainer.data.records import DataError, read_groups

# A column of one row of each kind of Arrow type, and nulls at every depth.
COLUMNS: dict[str, Any] = {
    "null": pa.nulls(1),
    "null of its type": pa.nulls(1, pa.string()),
    "boolean": pa.array([True]),
    "whole number": pa.array([7]),
    "negative number": pa.array([-7]),
    "number": pa.array([0.5]),
    "half": pa.array([0.5], pa.float16()),
    "nan": pa.array([math.nan]),
    "infinity": pa.array([-math.inf]),
    "out of float32": pa.array([1e300]),
    "string": pa.array(["d"]),
    "empty string": pa.array([""]),
    "large string": pa.array(["d"], pa.large_string()),
    "dictionary": pa.array(["d"]).dictionary_encode(),
    "binary": pa.array([b"\xff"]),
    "no utf-8": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()),
    "fixed binary": pa.array([b"dd"], pa.binary(2)),
    "decimal": pa.array([decimal.Decimal("1.5")]),
    "date": pa.array([datetime.date(2020, 1, 1)]),
    "date of no year": pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
    "timestamp": pa.array([2**62 + 1]).cast(pa.timestamp("ns")),
    "timestamp of no year": pa.array([2**62], pa.int64()).cast(pa.timestamp("us")),
    "time": pa.array([datetime.time(1)]),
    "duration": pa.array([datetime.timedelta(1)]),
    "list": pa.array([["d"]]),
    "empty list": pa.array([[]], pa.list_(pa.string())),
    "list of null": pa.array([[None]], pa.list_(pa.string())),
    "list of lists": pa.array([[["d"]]]),
    "struct": pa.array([{"doc_id": "d"}]),
    "list of structs without an id": pa.array([[{"title": "d"}]]),
    "map": pa.array([[("d", 1)]], pa.map_(pa.string(), pa.int64())),
}
TEXT = {"string", "large string", "dictionary"}
NUMBERS = {"whole number", "number", "half"}
ABSENT = {"null", "null of its type"}  # as if the record did not have it
FIELDS = {"doc_id": TEXT, "title": {*TEXT, "empty string", *ABSENT}, "summary": {*TEXT, "empty string", *ABSENT},
          "label": {*NUMBERS, "negative number", *ABSENT},
          "clicks": {*NUMBERS, *ABSENT}}  # fmt: skip
RECORDS = {"query_id": TEXT, "query": TEXT, "documents": set[str](),
           "weight": {*NUMBERS, *ABSENT}}  # fmt: skip
SCORES = {"query_id": TEXT, "doc_id": TEXT, "score": {*NUMBERS, "negative number"}, "teacher": set(COLUMNS)}


def record(path: Path, column: str, values: Any) -> Path:
    """A file of one record in which a column, or one of its document's, has these values."""
    fields = {"doc_id": pa.array(["d"]), "title": pa.array(["a title"]), "summary": pa.array(["a summary"]),
              "label": pa.array([1.0]), "clicks": pa.array([1])}  # fmt: skip
    fields |= {column: values} if column in fields else {}
    documents = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    columns = {"query_id": pa.array(["d"]), "query": pa.array(["a query"]), "weight": pa.array([1.0]),
               "documents": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), documents)}  # fmt: skip
    pq.write_table(pa.table(columns | ({} if column in fields else {column: values})), path)
    return path


def refused(error: str, path: Path, column: str) -> bool:
    """Whether a line names the file and the column; where Arrow itself cannot read it, the file."""
    named = f"'{column}'" in error or column.rstrip("s") in error.removeprefix(f"error: {path}")
    return str(path) in error and (named or "cannot be read as Parquet" in error)


@pytest.mark.parametrize("column", [*RECORDS, *FIELDS])
def test_records(column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = {**RECORDS, **FIELDS}[column]
    for number, (kind, values) in enumerate(COLUMNS.items()):
        path = record(tmp_path / f"{number}.parquet", column, values)
        if kind in taken:
            assert len(read_groups(path)) == 1, kind
            continue
        error = fails(evaluate, capsys, "--data", path, "--systems", "random")
        assert refused(error, path, column), (kind, error)


@pytest.mark.parametrize("column", SCORES)
def test_scores(column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = record(tmp_path / "data.parquet", "query", pa.array(["a query"]))
    for number, (kind, values) in enumerate(COLUMNS.items()):
        path = tmp_path / f"{number}.parquet"
        columns = {"query_id": pa.array(["d"]), "doc_id": pa.array(["d"]), "score": pa.array([0.5])}
        pq.write_table(pa.table({**columns, column: values}), path)
        if kind in SCORES[column]:
            assert len(ScoreTable(path).scores) == 1, kind
            continue
        error = fails(evaluate, capsys, "--data", data, "--systems", path)
        assert refused(error, path, column), (kind, error)
        with pytest.raises(DataError, match=re.escape(error.removeprefix("error: "))):
            ScoreTable(path)


def test_the_row_is_named(tmp_path: Path) -> None:
    """Rows are counted over row groups."""
    rows = [{"query_id": "q", "doc_id": f"d{number}", "score": 1.0} for number in range(7)]
    for place, name in itertools.product((0, 3, 6), ("query_id", "doc_id", "score")):
        changed = [{**row, name: None} if number == place else row for number, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(changed), tmp_path / "a.parquet", row_group_size=2)
        with pytest.raises(DataError, match=rf"a.parquet: row {place + 1}\b.*None"):
            ScoreTable(tmp_path / "a.parquet")
