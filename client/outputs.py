"""Rankings as lines: a table for people, JSON lines, TREC runs. On a terminal wide characters take two columns."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from client.command import reader_left
from client.records import Document, RankedDocument

CUT = " (cut)"


def encoded(lines: Iterable[str]) -> bytes:
    # A lone surrogate of the input stays the escape that it was.
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def show(content: bytes) -> None:
    """Write to standard output at once. A reader that has left (``| head``) has what it wanted."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        reader_left()
        sys.exit(0)


def jsonl(ranked: Sequence[RankedDocument]) -> Iterator[str]:
    """A line for each document."""
    return (json.dumps(asdict(found), ensure_ascii=False) for found in ranked)


def jsonl_of_query(query_id: str, ranked: Sequence[RankedDocument]) -> Iterator[str]:
    """One line for the query."""
    record = {"query_id": query_id, "documents": [asdict(found) for found in ranked]}
    yield json.dumps(record, ensure_ascii=False)


def trec(query_id: str, ranked: Sequence[RankedDocument], tag: str) -> Iterator[str]:
    """``qid Q0 docid rank score tag``; scores with all digits that they have, so that ties are ties."""
    return (f"{query_id} Q0 {found.doc_id} {found.rank} {found.score!r} {tag}" for found in ranked)


def table(ranked: Sequence[RankedDocument], documents: Sequence[Document]) -> Iterator[str]:
    """As wide as the terminal; summaries of documents without a title."""
    width = max(len("document"), *(columns(printable(found.doc_id)) for found in ranked))
    room = shutil.get_terminal_size().columns
    yield f"rank     score  {padded('document', width)}  title"
    for found in ranked:
        yield f"{found.rank:4d}  {row(found, documents, width, room - 6)}"


def row(found: RankedDocument, documents: Sequence[Document], width: int, room: int) -> str:
    """The score, the id in ``width`` columns, and the title (or the summary, if there is none) in what is left."""
    mark = CUT if found.truncated else ""
    start = f"{found.score:8.4f}  {padded(printable(found.doc_id), width)}  "
    title = printable(found.title or documents[found.index].summary)
    return start + fitted(title, room - columns(start) - len(mark)) + mark


def printable(text: str) -> str:
    """A space for each character that a terminal would act on instead of showing it."""
    return "".join(char if char.isprintable() else " " for char in text)


def columns(text: str) -> int:
    """How many columns a printable text takes."""
    return sum(_columns(char) for char in text)


def fitted(text: str, room: int) -> str:
    """The text in at most ``room`` columns, an ellipsis where it was cut."""
    if columns(text) <= room:
        return text
    kept, taken = "", 1  # the ellipsis
    for char in text:
        taken += _columns(char)
        if taken > room:
            break
        kept += char
    return kept + "…" if room > 0 else ""


def padded(text: str, room: int) -> str:
    """The text in exactly ``room`` columns."""
    text = fitted(text, room)
    return text + " " * (room - columns(text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
