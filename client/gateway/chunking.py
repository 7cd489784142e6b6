"""Long documents in overlapping pieces: each is scored, and the best one stands for the document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from client import Document, Scores

# Where no spaces part words, each character counts as one: so it is for BERT's tokenizers.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


class Chunking(NamedTuple):
    """How documents are cut into pieces."""

    words: int = 0  # of a piece; 0 leaves documents whole
    overlap: int = 0  # words of a piece that also end the piece before
    pieces: int = 10  # of a document, at most; the rest is not read


@dataclass(frozen=True)
class Pieces:
    """P pieces of N documents, in the documents' order."""

    documents: list[Document]  # [P]
    starts: list[int]  # [N] a document's first piece
    unread: list[bool]  # [N] more pieces than may be

    def merged(self, scores: Scores) -> Scores:
        """The documents' scores[N] from the pieces' [P]: the highest; cut if any piece was cut or left out."""
        if not self.starts:
            return scores
        logits = np.maximum.reduceat(scores.logits, self.starts)
        truncated = np.logical_or.reduceat(scores.truncated, self.starts) | np.array(self.unread)
        return Scores(logits, truncated)


def split(documents: Sequence[Document], chunking: Chunking) -> Pieces:
    """Every document's pieces; each has the document's title."""
    texts = [_pieces(document.summary, chunking) for document in documents]
    kept = [parts[: chunking.pieces] for parts in texts]
    return Pieces(
        [replace(document, summary=part) for document, parts in zip(documents, kept, strict=True) for part in parts],
        [0, *accumulate(map(len, kept))][:-1],
        [len(parts) > chunking.pieces for parts in texts],
    )


def _pieces(text: str, chunking: Chunking) -> list[str]:
    if not chunking.words:
        return [text]
    words = [match.span() for match in _WORD.finditer(text)]
    if len(words) <= chunking.words:
        return [text]
    step = chunking.words - chunking.overlap
    firsts = range(0, len(words) - chunking.overlap, step)
    return [text[words[first][0] : words[min(first + chunking.words, len(words)) - 1][1]] for first in firsts]
