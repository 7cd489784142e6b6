"""Rank documents for a query on a running server.

    python client/rank.py --query "garden bridge" docs.jsonl

The library is the package ``client``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

if not __package__:  # started as a file: the package is its folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from client import Document, InvalidRequestError, RankedDocument, RankingClient, RankingError
from client.records import as_document


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for bad input or a server that does not answer."""
    arguments = _parser().parse_args(argv)
    try:
        documents = _read(arguments.documents)
        with RankingClient(arguments.url, arguments.model, arguments.timeout) as client:
            ranked = client.rank(arguments.query, documents, arguments.top_k)
        lines = _table(ranked, documents) if arguments.format == "table" else (_json(found) for found in ranked)
        # A lone surrogate of the input stays the escape that it was.
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()
    except RankingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rank.py", description="Rank documents for a query on a running server.", epilog=main.__doc__
    )
    parser.add_argument(
        "documents", help='JSON lines {"doc_id", "title", "summary"} (doc_id: else the line); - is stdin'
    )
    parser.add_argument("--query", required=True)
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC (default %(default)s)")
    parser.add_argument("--model", default="ranker", help="default %(default)s")
    parser.add_argument("--top_k", type=int, help="print the best only")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds (default %(default)s)")
    parser.add_argument(
        "--format",
        choices=("table", "jsonl"),
        default="table" if sys.stdout.isatty() else "jsonl",
        help="default: table on a terminal, jsonl elsewhere",
    )
    return parser


def _read(path: str) -> list[Document]:
    name = "stdin" if path == "-" else path
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
            return list(_documents(name, file))
    except OSError as error:
        raise InvalidRequestError(f"{name}: {error.strerror}") from error


def _documents(name: str, file: BinaryIO) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
            if not isinstance(record, dict) or not {"title", "summary"} & record.keys():
                raise InvalidRequestError("a JSON object with a title or a summary is needed")
            document = as_document(record)
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"{name}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{name}:{number}: not UTF-8: {error.reason} at byte {error.start}") from error
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{name}:{number}: {error}") from error
        yield document if document.doc_id else Document(str(number), document.title, document.summary)


def _json(found: RankedDocument) -> str:
    return json.dumps(asdict(found), ensure_ascii=False)


def _table(ranked: Sequence[RankedDocument], documents: Sequence[Document]) -> Iterator[str]:
    width = max(len("document"), *(_columns(found.doc_id) for found in ranked))
    room = shutil.get_terminal_size().columns
    yield f"rank     score  document{' ' * (width - len('document'))}  title"
    for found in ranked:
        text = found.title or documents[found.index].summary
        padding = " " * (width - _columns(found.doc_id))
        mark = " (cut)" if found.truncated else ""
        line = f"{found.rank:4d}  {found.score:8.4f}  {_printable(found.doc_id)}{padding}  "
        yield line + _cut(_printable(text), room - _columns(line) - len(mark)) + mark


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _cut(text: str, room: int) -> str:
    if _columns(text) <= room:
        return text
    while text and _columns(text) > room - 1:
        text = text[:-1]
    return text + "…"


if __name__ == "__main__":
    sys.exit(main())
