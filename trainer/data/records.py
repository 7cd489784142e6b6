"""Records of a search log, out of JSON lines, Parquet files and datasets of ir_datasets."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from client.errors import InvalidRequestError
from client.inputs import id_of, query_of, record_of
from client.outputs import encoded
from client.records import Document
from trainer.data.identities import identity, repeated
from trainer.data.ir_datasets import ir_datasets_records
from trainer.data.rows import DataError as DataError  # which whoever reads records meets
from trainer.data.rows import parquet_rows, parsed_lines
from trainer.storage import appears_whole, listed

Scores = dict[str, dict[str, float]]  # query_id -> doc_id -> score (a logit, or a run's score)
LabelScale = Sequence[float]  # the lowest and the highest

IR_DATASETS = "ir_datasets:"
FILE = re.compile(r"^(?!.*/[._]).*\.(?:jsonl(?:\.gz|\.zst)?|parquet)$")
HIGHEST = float(np.finfo(np.float32).max)  # of a label, a weight or a score


@dataclass(frozen=True, slots=True)
class JudgedDocument:
    """A candidate of a query."""

    doc_id: str
    title: str
    summary: str
    label: float | None  # None where nobody judged the pair
    clicks: float  # a whole number, or a sum of corrected ones

    @property
    def text(self) -> str:
        """Title and summary in one, for models that know no pairs."""
        return f"{self.title} {self.summary}".strip()


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """One query with its candidate documents, in the order of the file."""

    query_id: str
    query: str
    documents: tuple[JudgedDocument, ...]
    weight: float = field(default=1.0, kw_only=True)  # of its loss in training


def read_groups(*sources: str | Path, label_scale: LabelScale | None = None) -> list[QueryGroup]:
    """All groups of ``iter_groups``, in memory."""
    return list(iter_groups(*sources, label_scale=label_scale))


def iter_groups(*sources: str | Path, label_scale: LabelScale | None = None) -> Iterator[QueryGroup]:
    """The groups of ``.jsonl`` and ``.parquet`` files and of ``ir_datasets:ID``, in order, one at a time.

    Raises DataError, which names the file and the line (or row), for what is malformed, missing, of the wrong type,
    duplicate or empty, and for labels outside ``label_scale``. That a query comes twice is only known at the end.
    """
    yield from (group for _, group in iter_numbered(*sources, label_scale=label_scale))


def iter_numbered(*sources: str | Path, label_scale: LabelScale | None = None) -> Iterator[tuple[int, QueryGroup]]:
    """The same with the place of each group's source among the ``sources``."""
    identities = array("Q")
    for number, source in enumerate(sources):
        before = len(identities)
        for where, record in _records(source):
            group = _group(where, record, label_scale)
            identities.append(identity(group.query_id))
            yield number, group
        if len(identities) == before:
            raise DataError(f"{source}: no queries in this file")
    refuse_repeated(identities, sources)


def groups_between(file: str, first: int, last: int) -> Iterator[QueryGroup]:
    """The groups of one file from the place ``first`` up to ``last``; what lies before is passed over unread."""
    for where, record in islice(_records(file, first), last - first):
        yield _group(where, record, None)


def files_in(source: str) -> list[str]:
    """The ``.jsonl`` and ``.parquet`` files in a folder, by name, packed ones too, or the source itself.

    A folder may be an address in an object store. Hidden files do not count. Raises DataError for a folder of none.
    """
    if source.startswith(IR_DATASETS) or not (found := listed(source)) or [*found] == [source]:
        return [source]
    names = [name for name in found if FILE.search(name.removeprefix(source.rstrip("/")))]
    if not names:
        raise DataError(f"{source}: no .jsonl or .parquet file in this folder")
    return names


def write_groups(path: str | Path, groups: Iterable[QueryGroup]) -> None:
    """The lines of ``encoded_groups``, in a file that appears whole or not at all."""
    with appears_whole(Path(path)) as partial, partial.open("wb") as file:
        file.writelines(encoded_groups(groups))


def encoded_groups(groups: Iterable[QueryGroup]) -> Iterator[bytes]:
    """A JSON line of each group, without its weight, and without labels and clicks where there are none."""
    for group in groups:
        record = {"query_id": group.query_id, "query": group.query, "documents": [*map(_record, group.documents)]}
        yield encoded([json.dumps(record, ensure_ascii=False)])


def _record(document: JudgedDocument) -> dict[str, Any]:
    record: dict[str, Any] = {"doc_id": document.doc_id, "title": document.title, "summary": document.summary}
    if document.label is not None:
        record["label"] = document.label
    return {**record, "clicks": document.clicks} if document.clicks else record


def refuse_repeated(identities: array[int], sources: Sequence[str | Path]) -> None:
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


def _records(source: str | Path, first: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and line (or row) of each record behind the ``first`` ones, and the record as it was written."""
    if str(source).startswith(IR_DATASETS):
        yield from ((str(source), record) for record in _of_ir_datasets(str(source)))
        return
    path = Path(source)
    if path.is_dir():
        yield from chain.from_iterable(map(_records, files_in(str(source))))
        return
    if path.suffix == ".parquet":
        rows = parquet_rows(path, {"query_id", "query", "documents"}, {"weight"}, first=first)
        yield from ((f"{path}:{number}", _without_nulls(row)) for number, row in enumerate(rows, start=first + 1))
        return
    yield from parsed_lines(path, record_of, first)


def _of_ir_datasets(source: str) -> Iterator[dict[str, Any]]:
    try:
        yield from ir_datasets_records(source.removeprefix(IR_DATASETS))
    except (LookupError, OSError) as error:
        reason = error.args[0] if error.args else error
        raise DataError(f"{source}: cannot be read: {reason}") from error


def _without_nulls(value: Any) -> Any:
    """The row as a line of JSON would have it: Parquet has every field in every row."""
    if isinstance(value, dict):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _group(where: str, record: dict[str, Any], label_scale: LabelScale | None) -> QueryGroup:
    """One reader is the client's too. Here ids are needed, and labels and clicks are read."""
    try:
        if not (query_id := id_of(record)):
            raise DataError(f"{where}: the query has no 'query_id'")
        where = f"{where}: query {query_id!r}"
        query, documents = query_of(record)
    except InvalidRequestError as error:
        raise DataError(f"{where}: {error}") from error
    judged = tuple(
        _judged(f"{where}: document {index}", document, fields, label_scale)
        for index, (document, fields) in enumerate(zip(documents, record["documents"], strict=True))
    )
    seen: set[str] = set()
    for document in judged:
        if document.doc_id in seen:
            raise DataError(f"{where}: doc_id {document.doc_id!r} comes twice")
        seen.add(document.doc_id)
    return QueryGroup(query_id, query, judged, weight=_weight(where, record.get("weight", 1.0)))


def _judged(where: str, document: Document, fields: Any, label_scale: LabelScale | None) -> JudgedDocument:
    if not document.doc_id:
        raise DataError(f"{where} has no 'doc_id'")
    where = f"{where} ({document.doc_id!r})"
    label = _label(where, fields.get("label"))
    if label is not None and label_scale is not None and not label_scale[0] <= label <= label_scale[1]:
        raise DataError(f"{where}: label {label:g} is outside of the scale, {label_scale[0]:g} to {label_scale[1]:g}")
    clicks = fields.get("clicks", 0)
    if not 0 <= _number(clicks) < math.inf:
        raise DataError(f"{where}: 'clicks' must be a finite number of at least 0, not {_shown(clicks)}")
    return JudgedDocument(document.doc_id, document.title, document.summary, label, clicks)


def _label(where: str, value: Any) -> float | None:
    if value is not None and not math.isfinite(_number(value)):
        raise DataError(f"{where}: 'label' must be a finite number or null, not {_shown(value)}")
    return None if value is None else _number(value)


def _weight(where: str, value: Any) -> float:
    if not 0 <= _number(value) < math.inf:
        raise DataError(f"{where}: 'weight' must be a finite number of at least 0, not {_shown(value)}")
    return _number(value)


def _number(value: Any) -> float:
    """NaN for what is no number, infinity for what float32 does not have, in which training computes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= HIGHEST else math.inf


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else type(value).__name__
