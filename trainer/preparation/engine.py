"""The DuckDB database of one preparation: SQL and functions over record batches, in bounded memory.

Every step reads tables and makes tables. What does not fit the limit of memory lies in the work folder.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb.func import PythonUDFType

from client.errors import DisRankerError
from trainer.data.records import DataError

FULL = ("No space left", "File too large", "quota", "max_temp_directory_size", "Read-only file system")
ROWS_AT_ONCE = 20_000


class Engine:
    """One connection to a database in ``folder``, which the caller removes."""

    def __init__(self, folder: Path, memory_limit: str, threads: int | None) -> None:
        self._connection = duckdb.connect(str(folder / "tables.duckdb"))
        try:
            self.run(f"SET memory_limit = {text(memory_limit)}")
        except duckdb.Error as error:
            raise DataError(f"--memory_limit {memory_limit}: {_line(error)}") from error
        self.run(f"SET temp_directory = {text(folder / 'spilled')}")
        self.run("SET TimeZone = 'UTC'")
        self.run("SET enable_progress_bar = false")
        if threads is not None:
            self.run(f"SET threads = {threads}")

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of the answer, for answers that are small."""
        return self._connection.execute(sql).fetchall()

    def number(self, sql: str) -> int:
        """The only value of the answer, 0 for NULL."""
        return int(self.run(sql)[0][0] or 0)

    def arrow(self, sql: str) -> pa.Table:
        return self._connection.sql(sql).to_arrow_table()

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The answer a part at a time; no other statement may run before its end."""
        with self._connection.sql(sql).to_arrow_reader(ROWS_AT_ONCE) as reader:
            yield from reader

    def copy(self, sql: str, path: Path, *options: str) -> None:
        """Write an answer as Parquet."""
        self.run(f"COPY ({sql}) TO {text(path)} ({', '.join(('FORMAT parquet', *options))})")

    def insert(self, table: str, rows: pa.Table) -> None:
        self._connection.register("inserted", rows)
        self.run(f"INSERT INTO {table} SELECT * FROM inserted")
        self._connection.unregister("inserted")

    def add(self, name: str, function: Callable[[pa.Array], pa.Array], result: str) -> None:
        """Make a function of SQL out of one that maps an array of strings, without nulls, to an array."""
        self._connection.create_function(name, function, ["VARCHAR"], result, type=PythonUDFType.ARROW)


@contextmanager
def naming_limits(output: Path) -> Iterator[None]:
    """Raises an error of ours where memory or the disk of ``output`` does not do."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        if any(words in str(error) for words in FULL):
            raise DisRankerError(f"{output}: cannot be written: {_line(error)}") from error
        raise DataError(f"--memory_limit is too little, or --threads are too many: {_line(error)}") from error
    except duckdb.IOException as error:
        raise DisRankerError(f"{output}: cannot be written: {_line(error)}") from error


def text(value: object) -> str:
    """A literal of SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def parquet(paths: Iterable[Path]) -> str:
    """All rows of files as a table of SQL."""
    names = ", ".join(text(glob.escape(str(path))) for path in paths)  # DuckDB takes a name as a pattern
    return f"read_parquet([{names}], hive_partitioning = false)"


def name(column: str) -> str:
    """An identifier of SQL."""
    return '"' + column.replace('"', '""') + '"'


def _line(error: Exception) -> str:
    return " ".join(str(error).partition("\n")[0].split())
