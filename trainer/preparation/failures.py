"""Rows and files that could not be taken are kept, and counted against how many there may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from trainer.data.records import DataError
from trainer.preparation.engine import FULL, Engine, text


@dataclass
class Failures:
    """Rows and files that could not be taken, and how many of them there may be."""

    engine: Engine
    allowed: int
    count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.engine.run("CREATE TABLE failed (file VARCHAR, row BIGINT, reason VARCHAR, record VARCHAR)")

    def add_file(self, path: Path, reason: str) -> None:
        self.add(f"SELECT {text(path)}, NULL, {text(reason)}, NULL")

    def add_unreadable(self, path: Path, error: duckdb.Error) -> None:
        """Raises the error itself, if no file is at fault for it: memory or a disk that is full."""
        if isinstance(error, duckdb.OutOfMemoryException) or any(words in str(error) for words in FULL):
            raise error
        self.add_file(path, f"cannot be read: {' '.join(str(error).split())}")

    def add(self, rows: str) -> None:
        """The rows of a query for file, row, reason and record. Raises DataError, which names the first, for too
        many."""
        self.engine.run(f"INSERT INTO failed {rows}")
        self.count = self.engine.number("SELECT count(*) FROM failed")
        if self.count > self.allowed:
            ((file, row, reason),) = self.engine.run("SELECT file, row, reason FROM failed ORDER BY file, row LIMIT 1")
            where = file if row is None else f"{file}:{row}"
            others = f" ({self.count - 1:,} more failed so far)" if self.count > 1 else ""
            raise DataError(f"{where}: {reason}{others}; --max_failed {self.allowed:,} allows no more")
