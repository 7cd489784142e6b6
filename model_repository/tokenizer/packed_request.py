"""A request's strings to packed rows, and the check that the student was built for them.

Shapes: N documents, R rows, L token slots a row, S pairs at most a row. Triton puts this directory
on ``sys.path``, so the contract is imported by its bare name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pair_encoding import Document, EncodingError, PackedBatch, PairEncoder, encoding_hash

Strings = npt.NDArray[np.object_]  # of bytes, as Triton hands them over


class PackedRequest(NamedTuple):
    """``truncated[N]`` says of each document whether it, or the query, was cut."""

    batch: PackedBatch
    truncated: npt.NDArray[np.bool_]


def pack_request(encoder: PairEncoder, query: Strings, titles: Strings, summaries: Strings) -> PackedRequest:
    """Rows of ``query[1]`` with ``titles[N]`` and ``summaries[N]``.

    Raises EncodingError, which names the input and the index and never quotes the text.
    """
    if titles.shape != summaries.shape:
        raise EncodingError(f"TITLES has {titles.size} elements and SUMMARIES {summaries.size}; a document has both")
    limit = encoder.config.max_documents
    if not 1 <= titles.size <= limit:
        raise EncodingError(f"TITLES has {titles.size} elements; a request takes 1 to {limit} documents")
    (query_text,) = _texts("QUERY", query)
    parts = (_texts(name, array) for name, array in (("TITLES", titles), ("SUMMARIES", summaries)))
    pairs = encoder.encode(query_text, [Document(*texts) for texts in zip(*parts, strict=True)])
    return PackedRequest(encoder.pack(pairs), np.array([pair.truncated for pair in pairs], dtype=np.bool_))


def _texts(name: str, array: Strings) -> list[str]:
    texts = []
    for index, element in enumerate(array.tolist()):
        try:
            texts.append(element.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise EncodingError(f"{name}[{index}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


def check_student(tokenizer: Path, student: str = "student") -> str:
    """Compare the newest version of ``student`` (or ``teacher``) beside the tokenizer's directory with it; says
    what was found.

    Raises EncodingError if that version was built for another encoding. One that cannot be
    seen from here is no error: cloud repositories are copied one model at a time.
    """
    versions = [path for path in tokenizer.parent.glob(f"{student}/*/manifest.json") if path.parent.name.isdigit()]
    if not versions:
        return f"no {student} lies beside this tokenizer: whether it was built for this encoding was not checked"
    newest = max(versions, key=lambda path: int(path.parent.name))
    built_for = json.loads(newest.read_text(encoding="utf-8"))["encoding_hash"]
    if built_for != encoding_hash(tokenizer):
        raise EncodingError(
            f"{student} version {newest.parent.name} was built for another tokenizer or other encoding settings than "
            f"those in {tokenizer}: install both from one checkpoint with build_engines.py"
        )
    return f"{student} version {newest.parent.name} was built for this encoding ({built_for[:12]})"
