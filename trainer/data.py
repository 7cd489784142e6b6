"""Records of the search log, and the files they come in: JSONL, Parquet, TREC runs and qrels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Scores = dict[str, dict[str, float]]  # query_id -> doc_id -> score (a logit, or a run's score)

SCORE_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float32()), ("teacher", pa.string())]
)


class DataError(ValueError):
    """Input that is not what it should be; the message says which file, line, query or document."""


@dataclass(frozen=True)
class JudgedDocument:
    """A candidate of a query: ``label`` is None where nobody judged the pair."""

    doc_id: str
    title: str
    summary: str
    label: float | None
    clicks: int


@dataclass(frozen=True)
class QueryGroup:
    """One query with its candidate documents, in the order of the file."""

    query_id: str
    query: str
    documents: tuple[JudgedDocument, ...]


def read_groups(path: str | Path) -> list[QueryGroup]:
    """All groups of a ``.jsonl`` or ``.parquet`` file.

    Raises DataError that names the file and the line (row) for what is malformed, missing, of the
    wrong type, duplicate or empty.
    """
    path = Path(path)
    groups: list[QueryGroup] = []
    seen: dict[str, int] = {}
    for number, record in _records(path):
        where = f"{path}:{number}"
        group = _group(where, record)
        if group.query_id in seen:
            raise DataError(f"{where}: query_id {group.query_id!r} again; it was on line {seen[group.query_id]}")
        seen[group.query_id] = number
        groups.append(group)
    if not groups:
        raise DataError(f"{path}: no queries in this file")
    return groups


def read_run(path: str | Path) -> Scores:
    """A TREC run (``qid Q0 docid rank score tag``): -rank as the score, so the order is the run's."""
    return _trec(Path(path), columns=6, key=2, value=3, sign=-1.0)


def read_qrels(path: str | Path) -> Scores:
    """TREC judgments (``qid 0 docid grade``) as grades."""
    return _trec(Path(path), columns=4, key=2, value=3, sign=1.0)


def read_scores(path: str | Path) -> Scores:
    """Teacher scores that ``trainer.score`` wrote: float32 logits."""
    table = _open_parquet(Path(path), set(SCORE_SCHEMA.names))
    scores: Scores = {}
    rows = zip(*(table.column(name).to_pylist() for name in ("query_id", "doc_id", "score")), strict=True)
    for number, (query_id, doc_id, score) in enumerate(rows, start=1):
        where = f"{path}: row {number}, query {query_id!r}, document {doc_id!r}"
        if score is None or not math.isfinite(score):
            raise DataError(f"{where}: the score is {score}, not a finite number")
        if doc_id in scores.setdefault(query_id, {}):
            raise DataError(f"{where}: scored twice")
        scores[query_id][doc_id] = score
    return scores


def write_scores(path: str | Path, scores: Iterable[tuple[str, str, float]], teacher: str) -> int:
    """Parquet rows ``query_id, doc_id, score, teacher``, and their number; the file appears whole or not at all."""
    rows = [(query_id, doc_id, score, teacher) for query_id, doc_id, score in scores]
    columns = list(zip(*rows, strict=True)) or [()] * len(SCORE_SCHEMA)
    table = pa.table([list(column) for column in columns], schema=SCORE_SCHEMA)
    with appears_whole(Path(path)) as partial:
        pq.write_table(table, partial)
    return len(rows)


def join_scores(shards: Sequence[Path], path: Path) -> None:
    """One file of the rows of all shards, in their order; it appears whole or not at all."""
    with appears_whole(path) as partial, pq.ParquetWriter(partial, SCORE_SCHEMA) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard))


def check_known(scores: Scores, groups: Iterable[QueryGroup], source: str | Path) -> None:
    """Raises DataError for the first query or document of ``scores`` that no group has."""
    known = {group.query_id: {document.doc_id for document in group.documents} for group in groups}
    for query_id, documents in scores.items():
        if query_id not in known:
            raise DataError(f"{source}: query {query_id!r} is not in the data")
        for doc_id in documents:
            if doc_id not in known[query_id]:
                raise DataError(f"{source}: document {doc_id!r} of query {query_id!r} is not in the data")


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        table = _open_parquet(path, {"query_id", "query", "documents"})
        yield from enumerate((row for batch in table.to_batches(1024) for row in batch.to_pylist()), start=1)
        return
    for number, line in _lines(path):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if text := line.decode("utf-8").strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8: {error.reason} at byte {error.start} of the line") from error


def _open_parquet(path: Path, columns: set[str]) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    if missing := sorted(columns - set(table.column_names)):
        raise DataError(f"{path}: no column {missing[0]!r}; it has {table.column_names}")
    return table


def _group(where: str, record: Any) -> QueryGroup:
    query_id = _text(where, record, "query_id")
    where = f"{where}: query {query_id!r}"
    query = _text(where, record, "query")
    if not query.strip():
        raise DataError(f"{where}: the query is empty")
    documents = record.get("documents")
    if not isinstance(documents, list):
        raise DataError(f"{where}: 'documents' must be a list, not {documents!r:.80}")
    if not documents:
        raise DataError(f"{where}: no documents")
    parsed = tuple(_document(f"{where}, document {index}", document) for index, document in enumerate(documents))
    ids = [document.doc_id for document in parsed]
    if len(set(ids)) < len(ids):
        duplicate = next(doc_id for doc_id in ids if ids.count(doc_id) > 1)
        raise DataError(f"{where}: doc_id {duplicate!r} twice")
    return QueryGroup(query_id, query, parsed)


def _document(where: str, record: Any) -> JudgedDocument:
    doc_id = _text(where, record, "doc_id")
    where = f"{where} ({doc_id!r})"
    label = record.get("label")
    if label is not None and (
        isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label)
    ):
        raise DataError(f"{where}: 'label' must be a number or null, not {label!r:.80}")
    clicks = record.get("clicks", 0)
    if isinstance(clicks, bool) or not isinstance(clicks, int) or clicks < 0:
        raise DataError(f"{where}: 'clicks' must be a whole number of at least 0, not {clicks!r:.80}")
    title, summary = _text(where, record, "title"), _text(where, record, "summary")
    return JudgedDocument(doc_id, title, summary, None if label is None else float(label), clicks)


def _text(where: str, record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, not {record!r:.80}")
    if field not in record:
        raise DataError(f"{where}: no field {field!r}")
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field!r} must be a string, not {value!r:.80}")
    if field.endswith("_id") and not value:
        raise DataError(f"{where}: {field!r} is empty")
    return value


def _trec(path: Path, columns: int, key: int, value: int, sign: float) -> Scores:
    scores: Scores = {}
    for number, line in _lines(path):
        parts = line.split()
        if len(parts) != columns:
            raise DataError(f"{path}:{number}: {len(parts)} columns where {columns} are needed")
        query_id, doc_id = parts[0], parts[key]
        if doc_id in scores.setdefault(query_id, {}):
            raise DataError(f"{path}:{number}: document {doc_id!r} of query {query_id!r} again")
        try:
            scores[query_id][doc_id] = sign * int(parts[value])
        except ValueError:
            raise DataError(f"{path}:{number}: {parts[value]!r} is not a whole number") from None
    if not scores:
        raise DataError(f"{path}: no lines in this file")
    return scores
