"""The data of a study: their hashes, which must stay the same, and the parts that folds are made of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from bench.quality.study import StudyError
from client.files import appears_whole
from trainer.data.identities import identity
from trainer.data.records import IR_DATASETS, QueryGroup, read_groups

FOLD = re.compile(r"(.+)\.(test|train)(\d+)of(\d+)")
TRAINED = "trained "  # before a name: the same data, but for the queries that are dropped
RECORD = "data.json"  # hashes, by name


@dataclass(frozen=True)
class Source:
    """A file, a folder, or an id of ir_datasets. Equal identities are equal contents."""

    path: str
    identity: str

    @property
    def has_queries(self) -> bool:
        path = Path(self.path)
        if path.suffix == ".parquet" and path.is_file():
            return "query" in pq.read_schema(path).names
        return self.path.startswith(IR_DATASETS) or ".jsonl" in path.suffixes


class Sources:
    """What the names of data stand for. Nothing is read before it is asked for."""

    def __init__(self, paths: Mapping[str, str], root: Path) -> None:
        self._paths, self._folder, self._record = paths, root / "data", root / RECORD
        self._known: dict[str, Source] = {}
        self._before: dict[str, str] = {}
        if self._record.exists():
            self._before = json.loads(self._record.read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> Source:
        """Raises StudyError for a path that is missing, and for data that changed since an earlier run."""
        if name.startswith(TRAINED) and name not in self._known:
            return self[name.removeprefix(TRAINED)]
        if name not in self._known:
            fold = FOLD.fullmatch(name)
            self._known[name] = self._given(name) if fold is None else self._part(name, *fold.groups())
        return self._known[name]

    def groups(self, name: str) -> list[QueryGroup]:
        return read_groups(self[name].path)

    def hashes(self) -> dict[str, str]:
        """Those of the data that were asked for."""
        return {name: source.identity for name, source in self._known.items() if name in self._paths}

    def keep(self) -> None:
        """Write the hashes down, beside those of earlier runs."""
        with appears_whole(self._record) as partial:
            partial.write_text(json.dumps(self._before | self.hashes(), indent=1) + "\n", encoding="utf-8")

    def without(self, name: str, query_ids: set[str]) -> None:
        """From now on training lacks these queries of the data."""
        left = [group for group in self.groups(name) if group.query_id not in query_ids]
        mark = hashlib.sha256("\0".join([self[name].identity, *sorted(query_ids)]).encode()).hexdigest()
        path = self._folder / f"{name}.without-{mark[:12]}.jsonl"
        write_groups(path, left, f"{name}: every query is a test query, too")
        self._known[f"{TRAINED}{name}"] = Source(str(path), mark)

    def _given(self, name: str) -> Source:
        path = self._paths[name]
        if not path:
            raise StudyError(f"{name}: the study leaves its path open: give --data {name}=PATH")
        source = Source(path, path if path.startswith(IR_DATASETS) else digest(Path(path), name))
        if self._before.get(name, source.identity) != source.identity:
            raise StudyError(
                f"{name}: {path} changed since the last run (sha256 {self._before[name][:12]} then, "
                f"{source.identity[:12]} now): restore it, or choose another --output"
            )
        return source

    def _part(self, name: str, whole: str, key: str, number: str, folds: str) -> Source:
        """A fold's queries, or all others. A query's fold follows from its id."""
        mark = hashlib.sha256(f"{self[whole].identity} {name}".encode()).hexdigest()
        path = self._folder / f"{name}.jsonl"
        if not path.exists():
            groups = [
                group
                for group in self.groups(whole)
                if (identity(group.query_id) % int(folds) == int(number)) == (key == "test")
            ]
            write_groups(path, groups, f"{whole}: fold {number} of {folds} has no query")
        return Source(str(path), mark)


def write_groups(path: Path, groups: Iterable[QueryGroup], none: str) -> None:
    """Records as JSON lines. Raises StudyError with the message ``none`` if there are none."""
    lines = [json.dumps(asdict(group), ensure_ascii=False) + "\n" for group in groups]
    if not lines:
        raise StudyError(none)
    with appears_whole(path) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


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
