"""A mapping: which files hold the log, texts, judgments and runs, and what their columns mean.

A mapping is a TOML file, or the name of a ready one in ``mappings/``. It has a table, or an array of tables, for each
kind of COLUMNS. A value of ``columns`` is a column's name (in JSON a path with dots), or else an expression of DuckDB's
SQL over the columns. A question mark behind a name says that the column may be absent.
"""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.records import DataError

READY = Path(__file__).with_name("mappings")
# The columns that a table of each kind must have, and may have.
COLUMNS: dict[str, tuple[set[str], set[str]]] = {
    "log": (
        {"query", "document"},
        {"session", "time", "title", "summary", "position", "click", "dwell", "click_time", "clicked"},
    ),
    "documents": ({"document"}, {"title", "summary"}),
    "queries": ({"query_id", "query"}, set()),
    "judgments": ({"document", "label"}, {"query_id", "query", "title", "summary"}),
    "run": ({"document", "rank"}, {"query_id", "query"}),
}
SWITCHES = ("header", "pages", "splits", "optional")
KINDS = {"pages": "log", "splits": "judgments"}  # the switches of one kind alone
KEYS = {"files", "columns", "format", *SWITCHES}
READERS = ("parquet", "jsonl", "tsv", "csv", "spaced")  # the last one: columns with any white space between them
FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv"}
PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """Files of one kind and layout."""

    kind: str
    files: tuple[Path, ...]
    columns: dict[str, str]
    where: str  # the mapping and the table, for messages
    format: str | None = None  # by the file's name if None
    header: bool = True
    pages: bool = False  # a row is a page with lists, not an impression
    splits: bool = False  # the files have train, dev or test in their names, the splits that they are

    def format_of(self, path: Path) -> str:
        """Raises DataError for a file whose name says nothing of it."""
        suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
        found = self.format or FORMATS.get(suffixes[-1] if suffixes else "")
        if found is None:
            raise DataError(f"{path}: neither its name nor 'format' in {self.where} says what it is")
        return found


def read_mapping(mapping: str, folder: str | None) -> list[Source]:
    """The sources of a mapping; patterns of files are relative to ``folder``, by default the mapping's own.

    Raises DataError for a mapping that is malformed, or names columns or files that cannot be meant.
    """
    ready = READY / f"{mapping}.toml"
    path = ready if ready.exists() and not Path(mapping).exists() else Path(mapping)
    if path is ready and folder is None:
        raise DataError(f"--mapping {mapping} is a ready one: name the folder of its files with --input")
    base = Path(folder) if folder is not None else path.parent
    found = [source for kind, tables in _tables(path) for source in _sources(path, kind, tables, base)]
    if not {source.kind for source in found} & {"log", "judgments", "run"}:
        raise DataError(f"{path}: no files of a log, of judgments or of a run in {base}")
    return found


def _tables(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    try:
        mapping = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in READY.glob("*.toml")))
        raise DataError(f"{path}: cannot be read: {error.strerror} (ready mappings: {known})") from error
    except ValueError as error:
        raise DataError(f"{path}: no TOML: {error}") from error
    for kind, tables in mapping.items():
        if kind not in COLUMNS:
            raise DataError(f"{path}: [{kind}] is none of {', '.join(COLUMNS)}")
        tables = tables if isinstance(tables, list) else [tables]
        if not all(isinstance(table, dict) for table in tables):
            raise DataError(f"{path}: {kind} must be a table")
        yield kind, tables


def _sources(path: Path, kind: str, tables: list[dict[str, Any]], base: Path) -> Iterator[Source]:
    for table in tables:
        where = f"{path} [{kind}]"
        if unknown := sorted(table.keys() - KEYS):
            raise DataError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(KEYS))}")
        _check_switches(where, kind, table)
        columns, patterns = _columns(where, kind, table.get("columns")), table.get("files")
        if "clicked" in columns and not table.get("pages"):
            raise DataError(f"{where}: 'clicked' is a list of pages = true; map 'click' for impressions")
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise DataError(f"{where}: 'files' must be a list of paths or patterns")
        if table.get("format") not in (None, *READERS):
            raise DataError(f"{where}: 'format' must be one of {', '.join(READERS)}, not {table['format']!r}")
        files = _files(base, patterns)
        if not files and not table.get("optional"):
            raise DataError(f"{where}: no file in {base} is named {' or '.join(patterns)}")
        rest = {key: value for key, value in table.items() if key not in ("files", "columns", "optional")}
        if files:
            yield Source(kind, files, columns, where, **rest)


def _check_switches(where: str, kind: str, table: dict[str, Any]) -> None:
    for key in SWITCHES:
        if not isinstance(table.get(key, False), bool):
            raise DataError(f"{where}: {key!r} must be true or false")
        if key in table and KINDS.get(key, kind) != kind:
            raise DataError(f"{where}: {key!r} is for [{KINDS[key]}]")


def _files(base: Path, patterns: list[str]) -> tuple[Path, ...]:
    """The files of the patterns, less those of patterns that begin with an exclamation mark."""
    taken, left_out = set[Path](), set[Path]()
    for pattern in patterns:
        # Path.glob refuses absolute patterns.
        matches = glob.iglob(pattern.removeprefix("!"), root_dir=base, recursive=True)  # noqa: PTH207
        (left_out if pattern.startswith("!") else taken).update(base / each for each in matches)
    return tuple(sorted(path for path in taken - left_out if path.is_file()))


def _columns(where: str, kind: str, columns: Any) -> dict[str, str]:
    if not isinstance(columns, dict) or not all(isinstance(value, str) for value in columns.values()):
        raise DataError(f"{where}: 'columns' must be a table of names")
    needed, optional = COLUMNS[kind]
    if unknown := sorted(columns.keys() - needed - optional):
        raise DataError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(needed | optional))}")
    if missing := sorted(needed - columns.keys()):
        raise DataError(f"{where}: no column is mapped to {missing[0]!r}")
    if kind in ("judgments", "run") and not columns.keys() & {"query_id", "query"}:
        raise DataError(f"{where}: no column is mapped to 'query_id' or 'query'")
    return dict(columns)
