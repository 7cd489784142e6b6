"""Queries and documents from JSON lines, for the client's commands, the load test and the trainer.

Every fault is one InvalidRequestError that names the file and the line, and the query or the document if it is known.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from client.errors import InvalidRequestError
from client.records import Document, as_document

STDIN = "-"


@dataclass(frozen=True)
class QueryRecord:
    """A query with the documents to rank for it."""

    where: str  # its file and line
    query_id: str  # the number of its line if it has none
    query: str
    documents: tuple[Document, ...]


class FaultyLineError(InvalidRequestError):
    """A line that holds no query to rank; the message begins with its file and line."""


def name_of(path: str | Path) -> str:
    return "stdin" if path == STDIN else str(path)


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """The file, or standard input for the string ``-``; what lies in a ``.gz`` or ``.zst`` file is unpacked.

    Raises InvalidRequestError if it cannot be read.
    """
    try:
        descriptor = 0 if path == STDIN else os.open(path, os.O_RDONLY)
        # Closing the reader would wait for a thread that still reads, of a pipe perhaps for ever.
        file = open(descriptor, "rb", closefd=False)  # noqa: SIM115
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        yield _unpacked(path, file)
    finally:
        if descriptor:
            os.close(descriptor)


def _unpacked(path: str | Path, file: BinaryIO) -> BinaryIO:
    suffix = Path(path).suffix
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # it is read as one
    if suffix != ".zst":
        return file
    try:
        from pyarrow import CompressedInputStream
    except ImportError as error:
        raise InvalidRequestError(f"{path}: install pyarrow to read it, or unpack it") from error
    return io.BufferedReader(CompressedInputStream(file, "zstd"))


def lines(path: str | Path, file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """File and line as text, the number and the bytes of each line that is not blank."""
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{name_of(path)}:{number}", number, line
    except (OSError, EOFError, zlib.error) as error:  # a folder, a disk that fails, a packed file that is cut
        raise InvalidRequestError(
            f"{name_of(path)}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def text_of(line: bytes, number: int) -> str:
    """The line as text; the first one of a file may begin with a byte order mark."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def record_of(line: bytes, number: int) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        record = json.loads(text_of(line, number))
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise InvalidRequestError(f"not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise InvalidRequestError(f"a JSON object is needed, not {type(record).__name__}")
    return record


def id_of(record: dict[str, Any]) -> str:
    """The query's id, empty if it has none."""
    return _checked_id("query_id", _text(record, "query_id"))


def query_of(record: dict[str, Any]) -> tuple[str, tuple[Document, ...]]:
    """The query of ``{"query", "documents": [...]}``, which is not blank, and its documents, at least one.

    A document is a string, or an object with a title or a text.
    """
    query, items = _text(record, "query"), record.get("documents")
    if not query.strip():
        raise InvalidRequestError("the query is empty")
    if not isinstance(items, list) or not items:
        raise InvalidRequestError("'documents' must be a list with at least one document")
    documents: list[Document] = []
    for index, item in enumerate(items):
        try:
            documents.append(_document(item))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"document {index}: {error}") from error
    return query, tuple(documents)


def read_documents(path: str, *, one_word_ids: bool = False) -> list[Document]:
    """Lines ``{"doc_id", "title", "summary"}``; a document without an id gets the number of its line.

    ``one_word_ids`` refuses what a TREC run cannot hold: ids with white space, and one that comes twice.
    Raises InvalidRequestError.
    """
    documents: list[Document] = []
    seen: set[str] = set()
    with opened(path) as file:
        for where, number, line in lines(path, file):
            try:
                document = _document(record_of(line, number))
                document = document if document.doc_id else replace(document, doc_id=str(number))
                if one_word_ids:
                    _check_new_word("doc_id", document.doc_id, seen)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"{where}: {error}") from error
            documents.append(document)
    if not documents:
        raise InvalidRequestError(f"{name_of(path)}: no documents in it")
    return documents


def read_queries(
    path: str | Path, file: BinaryIO, *, one_word_ids: bool = False
) -> Iterator[QueryRecord | FaultyLineError]:
    """Lines ``{"query_id", "query", "documents": [...]}`` in order; a query without an id gets the number of its line.

    A line that is at fault is yielded as its error: the caller decides whether to read the others.
    """
    seen: set[str] = set()
    for where, number, line in lines(path, file):
        query_id = ""
        try:
            record = record_of(line, number)
            query_id = id_of(record) or str(number)
            if one_word_ids:
                _check_new_word("query_id", query_id, seen)
            query, documents = query_of(record)
            if one_word_ids:
                _check_words(documents)
            yield QueryRecord(where, query_id, query, documents)
        except InvalidRequestError as error:
            yield FaultyLineError(f"{where}: {f'query {query_id!r}: ' if query_id else ''}{error}")


def check_word(name: str, text: str) -> None:
    """Raises InvalidRequestError for what would be two columns of a TREC run, or none."""
    if text.split() != [text]:
        raise InvalidRequestError(f"{name} {text!r} has white space, or nothing, in it: --format trec cannot hold it")


def _check_words(documents: tuple[Document, ...]) -> None:
    seen: set[str] = set()
    for index, document in enumerate(documents):
        try:
            _check_new_word("doc_id", document.doc_id or str(index), seen)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"document {index}: {error}") from error


def _check_new_word(name: str, text: str, seen: set[str]) -> None:
    check_word(name, text)
    if text in seen:
        raise InvalidRequestError(f"{text!r} comes twice: --format trec cannot tell them apart")
    seen.add(text)


def _document(item: Any) -> Document:
    document = as_document(item)
    _checked_id("doc_id", document.doc_id)
    return document


def _checked_id(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell it, no file of scores or rankings can hold it
        raise InvalidRequestError(f"{name} {text!r} has a lone surrogate, which is not a character") from error
    return text


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name!r} must be a string, not {type(value).__name__}")
    return value
