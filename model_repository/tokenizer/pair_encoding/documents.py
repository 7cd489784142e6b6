"""The documents of a request, as texts or as ids, and where to cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .packing import Counts, IntArray


@dataclass(frozen=True, kw_only=True)
class Document:
    """The part of a document that the ranker reads; either text may be empty."""

    title: str
    summary: str

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.title, self.summary) if part)


class DocumentIds(NamedTuple):
    """Documents already tokenised, as a forward index holds them: with what a prompt has in one part with the document,
    and without any other template."""

    token_ids: IntArray  # [T]
    lengths: Counts  # [N]; they sum to T

    @classmethod
    def of(cls, documents: Sequence[IntArray]) -> DocumentIds:
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        return cls(np.concatenate([np.empty(0, dtype=np.int32), *documents]), lengths)


class Truncation(NamedTuple):
    """A request's own limit: the most tokens of a document, and which side is cut, "right" or "left"."""

    max_tokens: int | None = None
    side: str = "right"


AT_END = Truncation()
