"""A file of rankings that appears whole, and that a second start resumes.

Until ``ranked.jsonl`` is whole, there are ``ranked.jsonl.part`` and ``ranked.jsonl.part.json`` beside it. The second
holds the settings that must be the same to resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from client.errors import InvalidRequestError
from client.files import move, naming
from client.inputs import FaultyLineError, QueryRecord

Settings = dict[str, str | int | None]
ELSE = "remove it to start anew, or name another --output"


class Line(NamedTuple):
    """A whole line of the file: the query that it is of, its number, and its end in bytes."""

    query_id: str
    number: int
    end: int


class Resumed(NamedTuple):
    """The records that remain, and how many queries an earlier start ranked (``done``) or left out."""

    records: Iterator[QueryRecord | FaultyLineError]
    done: int
    left_out: int


class PartialFile:
    """Raises InvalidRequestError for a file that cannot be written or that something else has begun."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._settings_file = path.with_name(f"{path.name}.part.json")
        self._settings = settings
        self._trec = settings["format"] == "trec"
        if path.exists():
            raise InvalidRequestError(f"{path} is there already: {ELSE}")
        try:
            if self.part.exists():
                self._check_settings()
            else:
                self._settings_file.write_text(json.dumps(settings), encoding="utf-8")
            self._file: BinaryIO = self.part.open("ab")
        except OSError as error:
            raise InvalidRequestError(f"{self.part}: cannot be written: {error.strerror}") from error

    def resume(self, records: Iterator[QueryRecord | FaultyLineError], *, gaps: bool) -> Resumed:
        """Skip the records that are there and drop a half-written one. With ``gaps`` records in between may be missing,
        which were left out."""
        end = done = left_out = 0
        for _, lines in groupby(self._lines(), lambda line: line.query_id if self._trec else line.number):
            first, *others = lines
            record, passed = self._matching(first, records, gaps)
            left_out += passed
            if 1 + len(others) < self._lines_of(record):
                records = chain([record], records)
                break
            end, done = (first, *others)[-1].end, done + 1
        self._file.truncate(end)
        return Resumed(records, done, left_out)

    def write(self, content: bytes) -> None:
        """Write the lines of one query. A process that is killed afterwards does not lose them."""
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise InvalidRequestError(
                f"{self.part}: {error.strerror}: make room; the same command resumes there"
            ) from error

    def appear(self) -> None:
        self.close()
        with naming(self.path):
            move(self.part, self.path)
        self._settings_file.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _check_settings(self) -> None:
        try:
            begun = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"{self._settings_file}: cannot be read: {ELSE} ({self.part} too)") from error
        for name, value in self._settings.items():
            if begun.get(name) != value:
                raise InvalidRequestError(
                    f"{self.part} was begun with {name} {begun.get(name)!r}, not {value!r}: give the same, {ELSE}"
                )

    def _lines_of(self, record: QueryRecord) -> int:
        if not self._trec:
            return 1
        top_k = self._settings["top_k"]
        return len(record.documents) if top_k is None else min(int(top_k), len(record.documents))

    def _matching(
        self, line: Line, records: Iterator[QueryRecord | FaultyLineError], gaps: bool
    ) -> tuple[QueryRecord, int]:
        for passed, record in enumerate(records):
            if isinstance(record, QueryRecord) and record.query_id == line.query_id:
                return record, passed
            if not gaps:
                there = f"{record.where} is of {record.query_id!r}" if isinstance(record, QueryRecord) else str(record)
                break
        else:
            there = "there is no such query after those before it"
        raise InvalidRequestError(
            f"{self.part}:{line.number} is of query {line.query_id!r} and {there}: it was begun from other queries, or "
            f"with --on_error skip: {ELSE}"
        )

    def _lines(self) -> Iterator[Line]:
        end = 0
        with self.part.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    return
                end += len(text)
                try:
                    query_id = text.decode().split(" ")[0] if self._trec else json.loads(text)["query_id"]
                except (ValueError, KeyError, TypeError) as error:
                    raise InvalidRequestError(f"{self.part}:{number} is no line of a ranking: {ELSE}") from error
                yield Line(query_id, number, end)
