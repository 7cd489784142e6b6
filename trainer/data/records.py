"""Records of the search log, and what they come in: JSONL, Parquet, datasets of ir_datasets."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from client.errors import DisRankerError
from trainer.data.ir_datasets import ir_datasets_records

Scores = dict[str, dict[str, float]]  # query_id -> doc_id -> score (a logit, or a run's score)
LabelScale = tuple[float, float]  # the lowest and the highest

IR_DATASETS = "ir_datasets:"


class DataError(DisRankerError):
    """Input that is not what it should be; the message says which file, line, query or document."""


@dataclass(frozen=True, slots=True)
class JudgedDocument:
    """A candidate of a query: ``label`` is None where nobody judged the pair."""

    doc_id: str
    title: str
    summary: str
    label: float | None
    clicks: int


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """One query with its candidate documents, in the order of the file."""

    query_id: str
    query: str
    documents: tuple[JudgedDocument, ...]


def read_groups(*sources: str | Path, label_scale: LabelScale | None = None) -> list[QueryGroup]:
    """All groups of ``iter_groups``, in memory."""
    return list(iter_groups(*sources, label_scale=label_scale))


def iter_groups(*sources: str | Path, label_scale: LabelScale | None = None) -> Iterator[QueryGroup]:
    """The groups of ``.jsonl`` and ``.parquet`` files and of ``ir_datasets:ID``, in order, one at a time.

    Raises DataError that names the file and the line (row) for what is malformed, missing, of the wrong
    type, duplicate or empty, and for labels outside ``label_scale``; a query that comes twice is only
    known at the end.
    """
    identities = array("Q")
    for source in sources:
        before = len(identities)
        for where, record in _records(source):
            group = _group(where, record, label_scale)
            identities.append(identity(group.query_id))
            yield group
        if len(identities) == before:
            raise DataError(f"{source}: no queries in this file")
    _refuse_repeated(identities, sources)


def identity(*names: str) -> int:
    """64 bits that stand for a query id, or a pair of ids, where millions of them must be in memory."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "little")


def repeated(identities: array[int]) -> set[int]:
    values, counts = np.unique(np.frombuffer(identities, dtype=np.uint64), return_counts=True)
    return set(values[counts > 1].tolist())


def _refuse_repeated(identities: array[int], sources: Sequence[str | Path]) -> None:
    """Raises DataError that names both places of a query that comes twice; reads again only if there is one."""
    if not (suspects := repeated(identities)):
        return
    places: dict[str, str] = {}
    for source in sources:
        for where, record in _records(source):
            query_id = record["query_id"]
            if identity(query_id) in suspects:
                if query_id in places:
                    raise DataError(f"{where}: query_id {query_id!r} again; it was in {places[query_id]}")
                places[query_id] = where


def _records(source: str | Path) -> Iterator[tuple[str, Any]]:
    """Records as they were written, and where."""
    if str(source).startswith(IR_DATASETS):
        yield from ((f"{source}", record) for record in _of_ir_datasets(str(source)))
        return
    path = Path(source)
    if path.suffix == ".parquet":
        rows = parquet_rows(path, {"query_id", "query", "documents"})
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in lines_of(path):
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error


def _of_ir_datasets(source: str) -> Iterator[Any]:
    try:
        yield from ir_datasets_records(source.removeprefix(IR_DATASETS))
    except (LookupError, OSError) as error:
        reason = error.args[0] if error.args else error
        raise DataError(f"{source}: cannot be read: {reason}") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text that are not blank, and their numbers."""
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


def parquet_rows(path: Path, columns: set[str], rows_at_once: int = 64) -> Iterator[dict[str, Any]]:
    """The rows of a file that must have ``columns``, a few in memory at a time."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := sorted(columns - set(names)):
                raise DataError(f"{path}: no column {missing[0]!r}; it has {names}")
            for row_group in range(file.num_row_groups):  # over all of them at once, memory grows
                for batch in file.iter_batches(rows_at_once, [row_group], sorted(columns)):
                    yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _group(where: str, record: Any, label_scale: LabelScale | None) -> QueryGroup:
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
    parsed = tuple(
        _document(f"{where}, document {index}", document, label_scale) for index, document in enumerate(documents)
    )
    ids = [document.doc_id for document in parsed]
    if len(set(ids)) < len(ids):
        duplicate = next(doc_id for doc_id in ids if ids.count(doc_id) > 1)
        raise DataError(f"{where}: doc_id {duplicate!r} twice")
    return QueryGroup(query_id, query, parsed)


def _document(where: str, record: Any, label_scale: LabelScale | None) -> JudgedDocument:
    doc_id = _text(where, record, "doc_id")
    where = f"{where} ({doc_id!r})"
    label = record.get("label")
    if label is not None and (
        isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label)
    ):
        raise DataError(f"{where}: 'label' must be a number or null, not {label!r:.80}")
    if label is not None and label_scale is not None and not label_scale[0] <= label <= label_scale[1]:
        raise DataError(f"{where}: label {label:g} is outside of the scale, {label_scale[0]:g} to {label_scale[1]:g}")
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
