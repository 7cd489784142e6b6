"""The data of a study: their hashes, which must stay the same, and the parts that folds are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from bench.quality.study import PART, PLACEHOLDER, StudyError
from client.files import appears_whole
from client.inputs import lines, opened, record_of
from trainer.data.identities import identity
from trainer.data.records import IR_DATASETS, iter_groups, read_groups
from trainer.data.rows import parsed_lines

TRAINED = "trained "  # before a name: the same data, but for the queries that are dropped
RECORD = "data.json"  # hashes, by name


@dataclass(frozen=True)
class Source:
    """A file, a folder, or an id of ir_datasets. Equal identities are equal contents."""

    path: str
    identity: str


class Asked(NamedTuple):
    """A query, and the ids of its documents."""

    query_id: str
    query: str
    documents: frozenset[str]


class Sources:
    """The files that the names of data stand for. Nothing is read before it is asked for."""

    def __init__(self, paths: Mapping[str, str], root: Path) -> None:
        self._paths, self._folder, self._record = paths, root / "data", root / RECORD
        self._known: dict[str, Source] = {}
        self.groups = lru_cache(maxsize=8)(lambda name: read_groups(self[name].path))
        self._before: dict[str, str] = {}
        if self._record.exists():
            self._before = json.loads(self._record.read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> Source:
        """Raises StudyError for a path that is missing, and for data that changed since an earlier run."""
        if name.startswith(TRAINED) and name not in self._known:
            return self[name.removeprefix(TRAINED)]
        if name not in self._known:
            part = PART.fullmatch(name)
            self._known[name] = self._given(name) if part is None else self._part(name, *part.groups())
        return self._known[name]

    def hashes(self) -> dict[str, str]:
        """Those of the data that were asked for."""
        return {name: source.identity for name, source in self._known.items() if name in self._paths}

    def keep(self) -> None:
        """Write the hashes down, beside those of earlier runs."""
        with appears_whole(self._record) as partial:
            partial.write_text(json.dumps(self._before | self.hashes(), indent=1) + "\n", encoding="utf-8")

    def without(self, name: str, query_ids: set[str]) -> None:
        """From now on training lacks these queries of the data."""
        mark = hashlib.sha256("\0".join([self[name].identity, *sorted(query_ids)]).encode()).hexdigest()
        path = self._folder / f"{name}.without-{mark[:12]}.jsonl"
        if not path.exists():  # a stage that was stopped goes on with the same file only
            filtered(self[name].path, path, lambda query_id: query_id not in query_ids)
        self._known[f"{TRAINED}{name}"] = Source(str(path), mark)

    def _given(self, name: str) -> Source:
        path = self._paths[name]
        if part := PLACEHOLDER.fullmatch(path):
            return self[part[1]]
        if not path:
            raise StudyError(f"{name}: the study leaves its path open: give --data {name}=PATH")
        source = Source(path, path if path.startswith(IR_DATASETS) else digest(Path(path), name))
        if self._before.get(name, source.identity) != source.identity:
            raise StudyError(
                f"{name}: {path} changed since the last run (sha256 {self._before[name][:12]} then, "
                f"{source.identity[:12]} now): restore it, or choose another --output"
            )
        return source

    def _part(self, name: str, whole: str, key: str, number: str, parts: str) -> Source:
        """The queries of one part, or all others. A query's part follows from its id."""
        mark = hashlib.sha256(f"{self[whole].identity} {name}".encode()).hexdigest()
        path = self._folder / f"{name}.jsonl"
        if not path.exists():
            inside = key == "test"
            filtered(self[whole].path, path, lambda query: (identity(query) % int(parts) == int(number)) == inside)
        return Source(str(path), mark)


def asked(path: str) -> list[Asked]:
    """The queries of records, or of JSON lines without documents; none for other files and folders."""
    if ".jsonl" in Path(path).suffixes:
        records = parsed_lines(Path(path), lambda line, number: (str(number), record_of(line, number)))
        return [
            Asked(str(record.get("query_id", number)), str(record["query"]), _doc_ids(record))
            for _, (number, record) in records
            if "query" in record
        ]
    table = path.endswith(".parquet") and "query" in pq.read_schema(path).names
    groups = iter_groups(path) if table or path.startswith(IR_DATASETS) else ()
    return [
        Asked(group.query_id, group.query, frozenset(document.doc_id for document in group.documents))
        for group in groups
    ]


def _doc_ids(record: dict[str, Any]) -> frozenset[str]:
    return frozenset(str(each.get("doc_id")) for each in record.get("documents") or () if isinstance(each, dict))


def filtered(path: str, target: Path, keep: Callable[[str], bool]) -> None:
    """Copy the lines of those queries that are to be kept, by their ids. Raises StudyError where none are left."""
    if ".jsonl" not in Path(path).suffixes:
        raise StudyError(f"{path}: only JSON lines can be divided into folds or lose queries: convert it")
    left = 0
    with opened(path) as file, appears_whole(target) as partial, partial.open("wb") as copy:
        for _, number, line in lines(path, file):
            if keep(str(record_of(line, number).get("query_id", number))):
                copy.write(line.rstrip(b"\n") + b"\n")
                left += 1
        if not left:
            raise StudyError(f"{path}: no query is left for {target.name}")


def digest(path: Path, name: str) -> str:
    """The SHA-256 of a file, or of the names and contents of all files in a folder."""
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        inside = sorted(each for each in path.rglob("*") if each.is_file())
        parts = "\n".join(f"{each.relative_to(path)} {digest(each, name)}" for each in inside)
        return hashlib.sha256(parts.encode()).hexdigest()
    except OSError as error:
        raise StudyError(f"{name}: {path} cannot be read: {error.strerror}") from error
