"""Candidates of queries, by bands of their ranks among all documents of a collection."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model_repository.tokenizer.pair_encoding import FloatArray, IntArray
from trainer.collection.queries import Query
from trainer.data.records import DataError, JudgedDocument, QueryGroup

# B queries, N documents: ``[B, N]``, a query's similarity to each document.
Similarities = Callable[[Sequence[str]], FloatArray]

SCORES_AT_ONCE = 2**23  # of a block of queries: 32 MB, and 64 MB for their order


@dataclass(frozen=True)
class Bands:
    """How many candidates are drawn from the ranks up to ``near_depth``, up to ``middle_depth``, and behind."""

    near: int
    middle: int
    far: int
    near_depth: int
    middle_depth: int

    @classmethod
    def of(cls, candidates: int, shares: Sequence[float], depths: Sequence[int], documents: int) -> Bands:
        """Raises DataError for bands that do not fit each other, or the number of documents."""
        if len(shares) != 3 or not all(0 <= share < math.inf for share in shares) or not shares[0]:
            raise DataError("--shares are three numbers of at least 0 (near, middle, far), the first above 0")
        if len(depths) != 2 or not 1 <= depths[0] <= depths[1]:
            raise DataError("--depths are two ranks, the last near one and the last middle one")
        near, middle, far = shared_out(candidates, shares)
        if near < 1:
            raise DataError(f"--candidates {candidates} with these --shares leave no near one for the query's document")
        if near > depths[0] or middle > depths[1] - depths[0]:
            raise DataError(
                f"--depths {depths[0]} {depths[1]} have no room for {near} near and {middle} middle candidates"
            )
        if documents <= (needed := depths[1] + far):
            raise DataError(
                f"--depths {depths[0]} {depths[1]} with {far} far candidates need more than {needed:,} documents; "
                f"there are {documents:,}"
            )
        return cls(near, middle, far, *depths)


def with_candidates(
    queries: Sequence[Query], documents: Sequence[JudgedDocument], similarities: Similarities, bands: Bands, seed: int
) -> Iterator[tuple[QueryGroup, list[float]]]:
    """Each query with its candidates, near ones first, its own document among these; and the similarity of each.

    What is drawn for a query depends on its id and the seed, not on other queries.
    """
    at_once = max(1, SCORES_AT_ONCE // len(documents))
    for at in range(0, len(queries), at_once):
        block = queries[at : at + at_once]
        scores_BN = similarities([query.text for query in block])
        # Equal scores, of which BM25 has many, in the order of the documents, on any machine.
        orders_BN = np.argsort(-scores_BN, axis=1, kind="stable")
        for query, scores_N, order_N in zip(block, scores_BN, orders_BN, strict=True):
            places = draw_candidates(order_N, query.source, bands, random.Random(f"{seed} {query.query_id}"))
            group = QueryGroup(query.query_id, query.text, tuple(documents[place] for place in places))
            yield group, scores_N[places].tolist()


def draw_candidates(order_N: IntArray, source: int | None, bands: Bands, draw: random.Random) -> list[int]:
    """Places of documents: the ``source``, then near, middle and far ones of ``order_N``, the best first."""
    first = [] if source is None else [source]
    others = order_N if source is None else order_N[order_N != source]
    ranks = [
        *draw.sample(range(bands.near_depth), bands.near - len(first)),
        *draw.sample(range(bands.near_depth, bands.middle_depth), bands.middle),
        *draw.sample(range(bands.middle_depth, len(others)), bands.far),
    ]
    return [*first, *others[ranks].tolist()]


def shared_out(candidates: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to ``candidates``."""
    last = np.rint(candidates * np.cumsum(shares) / sum(shares)).astype(int)
    counts: list[int] = np.diff(last, prepend=0).tolist()
    return counts
