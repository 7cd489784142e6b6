"""The lines and rows of a file one by one, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from client.errors import DisRankerError, InvalidRequestError
from client.inputs import lines, opened

Parsed = TypeVar("Parsed")


class DataError(DisRankerError):
    """Input that is not what it should be; the message names the file, the line, the query or the document."""


def parsed_lines(path: Path, parse: Callable[[bytes, int], Parsed], first: int = 0) -> Iterator[tuple[str, Parsed]]:
    """File and line of each line that is not blank, behind the ``first`` ones, and what ``parse`` makes of it and its
    number."""
    where = ""
    try:
        with opened(path) as file:
            for place, number, line in islice(lines(path, file), first, None):
                where = f"{place}: "
                yield place, parse(line, number)
                where = ""
    except InvalidRequestError as error:
        raise DataError(f"{where}{error}") from error


def parquet_rows(
    path: Path, columns: set[str], optional: Set[str] = frozenset(), rows_at_once: int = 64, first: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a file that must have ``columns`` and may have ``optional`` ones, a few in memory at a time.

    The ``first`` ones are passed over.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := sorted(columns - set(names)):
                raise DataError(f"{path}: no column {missing[0]!r}; it has {names}")
            for row_group in range(file.num_row_groups):  # over all of them at once, memory grows
                if first >= (size := file.metadata.row_group(row_group).num_rows):
                    first -= size
                    continue
                for batch in file.iter_batches(rows_at_once, [row_group], sorted((columns | optional) & {*names})):
                    yield from batch.slice(first).to_pylist()
                    first = max(0, first - batch.num_rows)
    # Besides broken files, values that Python has not: bytes that are no UTF-8, dates of no year.
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
