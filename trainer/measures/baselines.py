"""BM25 and random order, the baselines of every comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence

import bm25s

from trainer.data.records import QueryGroup, Scores


def bm25_scores(groups: Sequence[QueryGroup]) -> Scores:
    """BM25 (bm25s, k1 1.5, b 0.75, English stop words) of each query's candidates; the index and its
    statistics are the distinct documents of all groups, title and summary."""
    texts = {
        document.doc_id: f"{document.title} {document.summary}" for group in groups for document in group.documents
    }
    places = {doc_id: place for place, doc_id in enumerate(texts)}
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(texts.values()), stopwords="en", show_progress=False), show_progress=False)
    scores: Scores = {}
    for group in groups:
        tokens = bm25s.tokenize(group.query, stopwords="en", return_ids=False, show_progress=False)[0]
        known = [token for token in tokens if token in retriever.vocab_dict]
        values = retriever.get_scores(known) if known else [0.0] * len(texts)
        scores[group.query_id] = {
            document.doc_id: float(values[places[document.doc_id]]) for document in group.documents
        }
    return scores


def random_scores(groups: Sequence[QueryGroup], seed: int) -> Scores:
    draw = random.Random(seed)
    return {group.query_id: {document.doc_id: draw.random() for document in group.documents} for group in groups}
