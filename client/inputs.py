"""Documents and queries from JSON lines. A fault names the file and the line, and a query its id."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from client.errors import InvalidRequestError
from client.records import Document, as_document

STDIN = "-"


@dataclass(frozen=True)
class QueryRecord:
    """A query of a batch: ``where`` is its file and line."""

    where: str
    query_id: str
    query: str
    documents: tuple[Document, ...]


class FaultyLineError(InvalidRequestError):
    """A line that holds no query to rank; the message begins with its file and line."""


def name_of(path: str) -> str:
    return "stdin" if path == STDIN else path


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file, or standard input for ``-``. Raises InvalidRequestError if it cannot be read."""
    try:
        descriptor = 0 if path == STDIN else os.open(path, os.O_RDONLY)
        # Closing the reader would wait for a thread that still reads, of a pipe perhaps for ever.
        file = open(descriptor, "rb", closefd=False)  # noqa: SIM115
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error
    try:
        yield file
    finally:
        if descriptor:
            os.close(descriptor)


def read_documents(path: str, *, one_word_ids: bool = False) -> list[Document]:
    """Lines ``{"doc_id", "title", "summary"}``; a document without an id gets the number of its line.

    ``one_word_ids`` refuses what a TREC run cannot hold: ids with white space, and one that comes twice.
    Raises InvalidRequestError.
    """
    found: list[Document] = []
    seen: set[str] = set()
    with opened(path) as file:
        for where, number, line in _lines(path, file):
            try:
                document = _document(_record(line, number))
                document = document if document.doc_id else replace(document, doc_id=str(number))
                if one_word_ids:
                    check_word("doc_id", document.doc_id)
                    _check_new(document.doc_id, seen)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"{where}: {error}") from error
            found.append(document)
    if not found:
        raise InvalidRequestError(f"{name_of(path)}: no documents in it")
    return found


def read_queries(path: str, file: BinaryIO, *, one_word_ids: bool = False) -> Iterator[QueryRecord | FaultyLineError]:
    """Lines ``{"query_id", "query", "documents": [...]}`` in order; a query without an id gets the number of its line.

    A line that is at fault is handed on as the error that it is: whether the others go on is the caller's decision.
    """
    seen: set[str] = set()
    for where, number, line in _lines(path, file):
        query_id = ""
        try:
            record = _record(line, number)
            query_id = _text(record, "query_id") or str(number)
            if one_word_ids:
                check_word("query_id", query_id)
                _check_new(query_id, seen)
            yield QueryRecord(where, query_id, _text(record, "query"), _documents(record, one_word_ids))
        except InvalidRequestError as error:
            yield FaultyLineError(f"{where}: {f'query {query_id!r}: ' if query_id else ''}{error}")


def check_word(name: str, text: str) -> None:
    """Raises InvalidRequestError for what would be two columns of a TREC run, or none."""
    if text.split() != [text]:
        raise InvalidRequestError(f"{name} {text!r} has white space, or nothing, in it: --format trec cannot hold it")


def _check_new(name: str, seen: set[str]) -> None:
    if name in seen:
        raise InvalidRequestError(f"{name!r} comes twice: --format trec cannot tell them apart")
    seen.add(name)


def _lines(path: str, file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """Where, the number and the bytes of each line that is not blank."""
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{name_of(path)}:{number}", number, line
    except OSError as error:  # a folder, a disk that fails
        raise InvalidRequestError(f"{name_of(path)}: {error.strerror}") from error


def _record(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise InvalidRequestError(f"not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise InvalidRequestError(f"a JSON object is needed, not {type(record).__name__}")
    return record


def _document(record: dict[str, Any]) -> Document:
    if not {"title", "summary"} & record.keys():
        raise InvalidRequestError("a JSON object with a title or a summary is needed")
    return as_document(record)


def _documents(record: dict[str, Any], one_word_ids: bool) -> tuple[Document, ...]:
    given = record.get("documents")
    if not isinstance(given, list) or not given:
        raise InvalidRequestError("'documents' must be a list with at least one document")
    found: list[Document] = []
    seen: set[str] = set()
    for index, item in enumerate(given):
        try:
            document = _document(item) if isinstance(item, dict) else as_document(item)
            if one_word_ids:
                check_word("doc_id", document.doc_id or str(index))
                _check_new(document.doc_id or str(index), seen)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"document {index}: {error}") from error
        found.append(document)
    return tuple(found)


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name!r} must be a string, not {type(value).__name__}")
    return value
