"""A request's strings or ids to pairs, and the check that the student was built for them.

Triton puts this directory on ``sys.path``, so the contract is imported by its bare name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pair_encoding import (
    AT_END,
    Document,
    DocumentIds,
    EncodingError,
    FlatPairs,
    IntArray,
    PairEncoder,
    Truncation,
    encoding_hash,
)
from served import served_version
from token_cache import TokenCache

Strings = npt.NDArray[np.object_]  # of bytes, as Triton hands them over
OTHER_SIDE = b"\xff"  # before a text in the cache: no text begins with it
TOKENS, SIDE = "max_document_tokens", "truncation_side"  # parameters of a request


class RequestEncoder:
    """Requests to pairs by one artefact's encoder; a capacity of 0 keeps no documents' ids.

    All that it raises are EncodingErrors, which name the input and the index and never quote the text.
    ``most_bytes`` is what all documents of a request may have together, as texts or as ids; 0 is no limit.

    tokenising_s, lookup_s: how long the library took for the documents of the latest request, and the cache beside it
    """

    tokenising_s = lookup_s = 0.0

    def __init__(self, encoder: PairEncoder, cache_bytes: int, most_bytes: int = 0) -> None:
        self.cache = TokenCache(cache_bytes)
        self._encoder, self._most_bytes = encoder, most_bytes

    def encode_texts(
        self, query: Strings, titles: Strings, summaries: Strings, *, truncation: Truncation = AT_END
    ) -> FlatPairs:
        """The pairs of ``query[1]`` with ``titles[N]`` and ``summaries[N]``."""
        if titles.shape != summaries.shape:
            raise EncodingError(
                f"TITLES has {titles.size} elements and SUMMARIES {summaries.size}; a document has both"
            )
        self._check_count("TITLES", titles.size)
        documents = [*zip(titles.tolist(), summaries.tolist(), strict=True)]
        self._check_bytes(sum(len(title) + len(summary) for title, summary in documents))
        texts = [title + b" " + summary if title and summary else title or summary for title, summary in documents]
        for index, text in enumerate(texts):
            self._encoder.check_size(f"document {index}", len(text))

        def tokenise(places: Sequence[int]) -> list[IntArray]:
            chosen = [_decoded_text(place, *documents[place]) for place in places]
            began = time.monotonic()
            ids = self._encoder.tokenise(chosen, truncation.side)
            self.tokenising_s = time.monotonic() - began
            return ids

        kind = b"" if truncation.side == AT_END.side else OTHER_SIDE
        began, self.tokenising_s = time.monotonic(), 0.0
        ids = self._document_ids([kind + text for text in texts], tokenise)
        self.lookup_s = time.monotonic() - began - self.tokenising_s
        return self._pairs(query, ids, truncation)

    def encode_ids(
        self, query: Strings, document_ids: IntArray, document_lengths: IntArray, *, truncation: Truncation = AT_END
    ) -> FlatPairs:
        """The pairs of ``query[1]`` with the documents whose ids lie one after the other in ``document_ids[T]``,
        as many as ``document_lengths[N]`` says; they are what ``document_ids`` of the encoder gives."""
        self.tokenising_s = self.lookup_s = 0.0
        self._check_count("DOCUMENT_LENGTHS", document_lengths.size)
        self._check_bytes(document_ids.nbytes)
        if document_lengths.min() < 0:
            index = int(document_lengths.argmin())
            raise EncodingError(f"DOCUMENT_LENGTHS[{index}] is {int(document_lengths[index])}")
        documents = DocumentIds(document_ids, document_lengths.astype(np.int64))
        if documents.lengths.sum() != document_ids.size:
            raise EncodingError(
                f"DOCUMENT_LENGTHS add up to {int(documents.lengths.sum())} and DOCUMENT_IDS has {document_ids.size} "
                "elements: it holds the ids of all documents, one after the other"
            )
        self._encoder.check_ids(documents)
        return self._pairs(query, documents, truncation)

    def _document_ids(self, texts: Sequence[bytes], tokenise: Callable[[Sequence[int]], list[IntArray]]) -> DocumentIds:
        if not self.cache.capacity_bytes:
            return DocumentIds.of(tokenise(range(len(texts))))
        kind = self._encoder.id_type
        ids = self.cache.get(texts, lambda places: [array.astype(kind).tobytes() for array in tokenise(places)])
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)) // kind.itemsize
        return DocumentIds(np.frombuffer(b"".join(ids), dtype=kind).astype(np.int32), lengths)

    def _pairs(self, query: Strings, documents: DocumentIds, truncation: Truncation) -> FlatPairs:
        return self._encoder.pairs(_decoded("QUERY", 0, query.item()), documents, truncation)

    def _check_count(self, name: str, count: int) -> None:
        limit = self._encoder.config.max_documents
        if not 1 <= count <= limit:
            raise EncodingError(f"{name} has {count} elements; a request takes 1 to {limit} documents")

    def _check_bytes(self, size: int) -> None:
        if self._most_bytes and size > self._most_bytes:
            raise EncodingError(
                f"the documents have {size} bytes; a request takes at most {self._most_bytes} (max_request_bytes): "
                "send fewer at a time"
            )


def truncation_of(parameters: str) -> Truncation:
    """Read a request's parameters, which are JSON. Raises EncodingError for what cannot be meant."""
    named: dict[str, Any] = json.loads(parameters) if parameters else {}
    tokens, side = named.get(TOKENS), str(named.get(SIDE, AT_END.side))
    if tokens is not None and (type(tokens) is not int or tokens < 1):  # true is an int, too
        raise EncodingError(f"{TOKENS} must be at least 1, not {str(tokens)[:20]!r}")
    return Truncation(tokens, side)


def _decoded_text(index: int, title: bytes, summary: bytes) -> str:
    return Document(title=_decoded("TITLES", index, title), summary=_decoded("SUMMARIES", index, summary)).text


def _decoded(name: str, index: int, text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EncodingError(f"{name}[{index}] is not UTF-8: {error.reason} at byte {error.start}") from None


def check_student(tokenizer: Path, student: str = "student") -> str:
    """Compare the version of ``student`` (or ``teacher``) that Triton serves with the tokenizer's directory; says
    what was found.

    Raises EncodingError if that version was built for another encoding. One that cannot be
    seen from here is no error: cloud repositories are copied one model at a time.
    """
    scorer = tokenizer.parent / student
    version = served_version(scorer)
    manifest = scorer / str(version) / "manifest.json"
    if not manifest.is_file():
        return f"no {student} lies beside this tokenizer: whether it was built for this encoding was not checked"
    built_for = json.loads(manifest.read_text(encoding="utf-8"))["encoding_hash"]
    if built_for != encoding_hash(tokenizer):
        raise EncodingError(
            f"{student} version {version} was built for another tokenizer or other encoding settings than "
            f"those in {tokenizer}: install both from one checkpoint with build_engines.py"
        )
    return f"{student} version {version} was built for this encoding ({built_for[:12]})"
