"""Queries of a collection: drawn from its documents, or real ones out of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from client.errors import InvalidRequestError
from client.inputs import id_of, record_of, text_of
from trainer.collection.words import Made
from trainer.data.rows import DataError, parsed_lines


class Query(NamedTuple):
    """A query, and the place of the document that it was made of; a real one has none."""

    query_id: str
    text: str
    kind: str
    source: int | None


def drawn(kinds: dict[str, Made], count: int, real: Sequence[Query], name: str) -> list[Query]:
    """``count`` queries of different texts, of each kind in its turn; where one has no more, the others go on.

    Their ids hold ``name``.

    Raises DataError where all of them have fewer.
    """
    heard, used = {query.text.casefold() for query in real}, {query.query_id for query in real}
    distinct = {kind: _unheard(made, heard) for kind, made in kinds.items()}
    found = list(tqdm(islice(_in_turn(distinct), count), desc="drawing", total=count, unit="query", delay=5))
    if len(found) < count:
        raise DataError(
            f"--count {count:,}: the documents give {len(found):,} different queries by --kinds {' '.join(kinds)}"
        )
    queries = [
        Query(f"{kind}-{name}-{number}", text, kind, place) for number, (kind, text, place) in enumerate(found, start=1)
    ]
    if clash := next((query.query_id for query in queries if query.query_id in used), None):
        raise DataError(f"query_id {clash!r} of a real query is that of a drawn one")
    return queries


def _in_turn(kinds: dict[str, Made]) -> Iterator[tuple[str, str, int]]:
    left = dict(kinds)
    while left:
        for kind in list(left):
            if (made := next(left[kind], None)) is None:
                del left[kind]
            else:
                yield kind, *made


def _unheard(made: Made, heard: set[str]) -> Made:
    for text, place in made:
        if (key := text.casefold()) not in heard:
            heard.add(key)
            yield text, place


def read_queries(paths: Sequence[str]) -> list[Query]:
    """Real queries: ``{"query_id", "query"}`` a line of a file with ``.jsonl`` in its name, else a text a line.

    A text that comes twice is taken once; a query without an id gets that of its file and line. Raises DataError for
    an id that comes twice, and for what ``parsed_lines`` refuses.
    """
    queries: dict[str, Query] = {}
    ids = set[str]()
    for path in paths:
        before = len(ids)
        for where, query in parsed_lines(Path(path), partial(_real, Path(path))):
            if query.query_id in ids:
                raise DataError(f"{where}: query_id {query.query_id!r} again")
            ids.add(query.query_id)
            queries.setdefault(query.text.casefold(), query)
        if len(ids) == before:
            raise DataError(f"{path}: no queries in this file")
    return list(queries.values())


def _real(path: Path, line: bytes, number: int) -> Query:
    record = record_of(line, number) if ".jsonl" in path.suffixes else {"query": text_of(line, number)}
    text = record.get("query")
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequestError("'query' must be a string that is not blank")
    return Query(id_of(record) or f"{path.stem}-{number}", text.strip(), "real", None)
