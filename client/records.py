"""The records of requests and of rankings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from client.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document to rank. An empty ``doc_id`` becomes the document's index. Title or summary may be empty.

    Fields are named: the tokenizer's own Document begins with the title, and positions would be swapped silently.
    """

    doc_id: str = ""
    title: str = ""
    summary: str = ""


# A mapping has the names of NAMES and others, which are ignored; a string is the summary.
DocumentLike: TypeAlias = Document | Mapping[str, object] | str
# What libraries call a document's text. Of several names the first that is neither null nor empty counts.
TEXTS = ("summary", "text", "content", "contents", "page_content", "body", "passage", "abstract")
NAMES = {"doc_id": ("doc_id", "id"), "title": ("title",), "summary": TEXTS}


@dataclass(frozen=True)
class RankingRequest:
    """One query and what is to be ranked for it."""

    query: str
    documents: Sequence[DocumentLike]


@dataclass(frozen=True)
class RankedDocument:
    """A document in its place in a ranking."""

    rank: int  # from 1
    index: int  # in the caller's list, from 0
    doc_id: str
    score: float  # a logit
    probability: float  # the sigmoid of the score
    truncated: bool  # the query or the document was longer than the model reads
    title: str


class Truncation(NamedTuple):
    """How documents are cut that are longer than ``max_tokens`` or than the model reads: title and summary are one text
    there, of which the ``side`` is cut, "right" (its end) or "left"."""

    max_tokens: int | None = None
    side: str = "right"


AT_END = Truncation()  # where the model's own length ends


class Scores(NamedTuple):
    """The scores of a request's documents, in the caller's order."""

    logits: npt.NDArray[np.float32]  # [N]
    truncated: npt.NDArray[np.bool_]  # [N]


def as_document(item: DocumentLike) -> Document:
    """Make a Document of what a caller gave. Null is empty, and another name of the same field counts instead.

    Raises InvalidRequestError for a mapping without title and text, and for a value that is not a string.
    """
    if isinstance(item, str):
        return Document(summary=item)
    if isinstance(item, Document):
        given: Mapping[str, object] = vars(item)
        if all(isinstance(value, str) for value in given.values()):
            return item
    elif isinstance(item, Mapping):
        given = item
    else:
        raise InvalidRequestError(f"a document is a string, a mapping or a Document, not {type(item).__name__}")
    if not any(name in given for name in ("title", *TEXTS)):
        found = ", ".join(map(repr, islice(given, 5))) or "nothing"
        raise InvalidRequestError(f"a document needs a title or a text ({', '.join(TEXTS)}); it has {found:.99}")
    return Document(**{field: _text(given, names) for field, names in NAMES.items()})


def _text(given: Mapping[str, object], names: Sequence[str]) -> str:
    for name in names:
        value = given.get(name)
        if not isinstance(value, str | None):
            raise InvalidRequestError(f"{name!r} of a document must be a string, not {type(value).__name__}")
        if value:
            return value
    return ""


def ranked(documents: Sequence[Document], scores: Scores, top_k: int | None) -> list[RankedDocument]:
    """From the best score down, equal scores in the caller's order; all, or the first ``top_k``."""
    order = np.argsort(-scores.logits, kind="stable")[:top_k].tolist()
    logits, truncated = scores.logits.tolist(), scores.truncated.tolist()
    return [
        RankedDocument(
            rank=rank,
            index=index,
            doc_id=documents[index].doc_id or str(index),
            score=logits[index],
            probability=sigmoid(logits[index]),
            truncated=truncated[index],
            title=documents[index].title,
        )
        for rank, index in enumerate(order, start=1)
    ]


def sigmoid(logit: float) -> float:
    """The probability of a logit, without overflow at either end."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
