"""Rank documents for a query on a running server: a library, and a command.

    with RankingClient("localhost:8001") as client:
        for found in client.rank("garden bridge", [Document("d1", "A title", "A summary"), "plain text"]):
            print(found.rank, found.doc_id, found.score)

    python client/rank.py --query "garden bridge" docs.jsonl

This file needs tritonclient and numpy only, and may be copied into other code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException


class RankingError(Exception):
    """Whatever keeps documents from being ranked; the message says what to do."""


class ServerUnavailableError(RankingError):
    """Nothing answers at the address."""


class ModelNotReadyError(RankingError):
    """The server answers and does not serve the model."""


class RequestTimeoutError(RankingError):
    """No answer within the client's ``timeout_s``."""


class InvalidRequestError(RankingError):
    """The request is at fault: no documents, too many, an empty query, a document that is too large."""


@dataclass(frozen=True)
class Document:
    """What is ranked; an empty ``doc_id`` becomes the document's index. Title or summary may be empty."""

    doc_id: str = ""
    title: str = ""
    summary: str = ""


@dataclass(frozen=True)
class RankedDocument:
    """``rank`` counts from 1, ``index`` is the place in the caller's list from 0, ``score`` is a logit;
    ``truncated`` says that the query or the document was longer than the model reads."""

    rank: int
    index: int
    doc_id: str
    score: float
    truncated: bool
    title: str


class _Answer(NamedTuple):
    scores: npt.NDArray[np.float32]  # [N]
    truncated: npt.NDArray[np.bool_]  # [N]


class RankingClient:
    """A connection to one server, for one thread. Every call may raise a RankingError."""

    def __init__(self, url: str = "localhost:8001", model: str = "ranker", timeout_s: float = 30.0) -> None:
        self._url, self._model, self._timeout_s = url, model, timeout_s
        try:
            self._client = grpc.InferenceServerClient(url)
        except InferenceServerException as error:
            raise ServerUnavailableError(f"{url!r} is not the address of a gRPC port: {error.message()}") from error

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the server answers and serves the model."""
        try:
            return bool(self._client.is_model_ready(self._model, client_timeout=self._timeout_s))
        except InferenceServerException:
            return False

    def score(self, query: str, documents: Iterable[Document | Mapping[str, str] | str]) -> list[float]:
        """A logit per document, in the caller's order."""
        scores: list[float] = self._infer(query, [_document(item) for item in documents]).scores.tolist()
        return scores

    def rank(
        self, query: str, documents: Iterable[Document | Mapping[str, str] | str], top_k: int | None = None
    ) -> list[RankedDocument]:
        """The documents from the best score down, equal scores in the caller's order; all, or the first ``top_k``."""
        if top_k is not None and top_k < 1:
            raise InvalidRequestError(f"top_k must be at least 1, not {top_k}")
        candidates = [_document(item) for item in documents]
        answer = self._infer(query, candidates)
        order = np.argsort(-answer.scores, kind="stable")[:top_k].tolist()
        return [
            RankedDocument(
                rank=rank,
                index=index,
                doc_id=candidates[index].doc_id or str(index),
                score=float(answer.scores[index]),
                truncated=bool(answer.truncated[index]),
                title=candidates[index].title,
            )
            for rank, index in enumerate(order, start=1)
        ]

    def _infer(self, query: str, documents: Sequence[Document]) -> _Answer:
        inputs = [
            _strings("QUERY", [query]),
            _strings("TITLES", [document.title for document in documents]),
            _strings("SUMMARIES", [document.summary for document in documents]),
        ]
        try:
            result = self._client.infer(self._model, inputs, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise self._translated(error) from error
        return _Answer(result.as_numpy("SCORES"), result.as_numpy("TRUNCATED"))

    def _translated(self, error: InferenceServerException) -> RankingError:
        status, message = str(error.status()).removeprefix("StatusCode."), str(error.message()).strip()
        if status == "INVALID_ARGUMENT":
            reason = message.removeprefix(f"in ensemble {self._model!r}, ")
            return InvalidRequestError(f"{self._url} refused the request: {reason}")
        if status == "DEADLINE_EXCEEDED":
            return RequestTimeoutError(f"{self._url} gave no answer within {self._timeout_s:g} s: raise the time limit")
        if not self._is_live():
            return ServerUnavailableError(f"no server answers at {self._url}: start it, or name its gRPC port")
        if status in ("UNAVAILABLE", "NOT_FOUND"):
            return ModelNotReadyError(f"the server at {self._url} does not serve the model {self._model!r}: {message}")
        return RankingError(f"{self._url}: {status}: {message}")

    def _is_live(self) -> bool:
        try:
            return bool(self._client.is_server_live(client_timeout=self._timeout_s))
        except InferenceServerException:
            return False


def _document(item: Document | Mapping[str, str] | str) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(summary=item)
    fields = {name: item.get(name, "") for name in ("doc_id", "title", "summary")}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise InvalidRequestError(f"{name!r} of a document must be a string, not {type(value).__name__}")
    return Document(**fields)


def _strings(name: str, texts: Sequence[str]) -> grpc.InferInput:
    # Lone surrogates, which JSON can spell and UTF-8 cannot, are replaced as they are in training.
    encoded = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode() for text in texts]
    tensor = grpc.InferInput(name, [len(encoded)], "BYTES")
    tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_))
    return tensor


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
            document = _document(record)
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
