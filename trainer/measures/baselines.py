"""BM25 and random order, the baselines of every comparison."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from trainer.data.records import QueryGroup, Scores

K1, B = 0.9, 0.4  # Anserini's, by which the runs of TREC's passage rankings are made
ABOUT_BM25 = f"k1 {K1}, b {B}; English stems; pairs of characters where a script has no spaces"
# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Kana and Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
RUN = re.compile(rf"([{UNSPACED}]+)|([^\W_{UNSPACED}]+)")
STOP_WORDS = frozenset(STOPWORDS_EN)


class Bm25Index:
    """BM25 (bm25s) of a query with each of some distinct texts, whose statistics it has."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        self._stemmer = Stemmer.Stemmer("english")
        self._retriever = bm25s.BM25(k1=K1, b=B)
        tokens = [tokenised(text, self._stemmer) for text in texts]
        self._vocabulary: frozenset[str] = frozenset(token for each in tokens for token in each)
        if self._vocabulary:  # bm25s indexes no empty one
            self._retriever.index(tokens, show_progress=False)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """``[N]``, in the order of the texts."""
        known = [token for token in tokenised(query, self._stemmer) if token in self._vocabulary]
        return self._retriever.get_scores(known) if known else np.zeros(self._size, np.float32)


class Bm25:
    """BM25 with the statistics of the distinct texts, title and summary, of all documents of the groups.

    A document id may have another text with another query, so texts are looked up, not ids.
    """

    def __init__(self, groups: Sequence[QueryGroup]) -> None:
        texts = dict.fromkeys(document.text for group in groups for document in group.documents)
        self._places = {text: place for place, text in enumerate(texts)}
        self._index = Bm25Index(list(texts))

    def scores(self, groups: Sequence[QueryGroup]) -> Scores:
        """Score every document of ``groups``, which are among those of the index."""
        return {group.query_id: self._scores(group) for group in groups}

    def _scores(self, group: QueryGroup) -> dict[str, float]:
        values = self._index.scores(group.query)
        return {each.doc_id: float(values[self._places[each.text]]) for each in group.documents}


def tokenised(text: str, stemmer: Stemmer.Stemmer) -> list[str]:
    """Stems of words, and pairs of neighbouring characters where a script has no spaces (a lone one by itself)."""
    tokens = list[str]()
    for unspaced, word in RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        if unspaced:
            tokens += [unspaced[at : at + 2] for at in range(max(1, len(unspaced) - 1))]
        elif word not in STOP_WORDS:
            tokens.append(stemmer.stemWord(word))
    return tokens


def random_scores(groups: Sequence[QueryGroup], seed: int) -> Scores:
    draw = random.Random(seed)
    return {group.query_id: {document.doc_id: draw.random() for document in group.documents} for group in groups}
