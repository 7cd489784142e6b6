"""Queries and their documents as encoded pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from model_repository.tokenizer.pair_encoding import Document, DocumentIds, FlatPairs, PairEncoder
from trainer.data.records import QueryGroup


def encode_groups(encoder: PairEncoder, groups: Iterable[QueryGroup]) -> FlatPairs:
    """The pairs of all groups, in the order of their documents.

    A server refuses a text above ``max_document_bytes``. Here its end is left out, which is far behind the tokens that
    are read.
    """
    most, groups = encoder.config.max_document_bytes, list(groups)
    texts = (_within(most, each.title, each.summary) for group in groups for each in group.documents)
    # Of all queries at once: the tokenizer's threads share them out, also where each query has one document.
    ids = encoder.document_ids([Document(title=title, summary=summary) for title, summary in texts])
    firsts = [*accumulate((len(group.documents) for group in groups), initial=0)]
    tokens = [0, *accumulate(ids.lengths.tolist())]
    pairs = []
    for group, (first, last) in zip(groups, pairwise(firsts), strict=True):
        own = DocumentIds(ids.token_ids[tokens[first] : tokens[last]], ids.lengths[first:last])
        pairs.append(encoder.pairs(_within(most, group.query)[0], own))
    return FlatPairs.join(pairs)


def _within(most: int, *texts: str) -> Sequence[str]:
    """The texts, or their beginnings where they have more than ``most`` bytes together."""
    if 4 * sum(map(len, texts)) <= most or sum(len(text.encode(errors="replace")) for text in texts) < most:
        return texts
    return [text[: most // (4 * len(texts)) - 1] for text in texts]
