"""Queries and their documents as encoded pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model_repository.tokenizer.pair_encoding import Document, FlatPairs, PairEncoder
from trainer.data.records import QueryGroup


def encode_groups(encoder: PairEncoder, groups: Iterable[QueryGroup]) -> FlatPairs:
    """The pairs of all groups, in the order of their documents.

    A server refuses a text above ``max_document_bytes``. Here its end is left out, which is far behind the tokens that
    are read.
    """
    most = encoder.config.max_document_bytes
    pairs = []
    for group in groups:
        texts = (_within(most, each.title, each.summary) for each in group.documents)
        documents = [Document(title=title, summary=summary) for title, summary in texts]
        pairs.append(encoder.encode(_within(most, group.query)[0], documents))
    return FlatPairs.join(pairs)


def _within(most: int, *texts: str) -> Sequence[str]:
    """The texts, or their beginnings where they have more than ``most`` bytes together."""
    if 4 * sum(map(len, texts)) <= most or sum(len(text.encode(errors="replace")) for text in texts) < most:
        return texts
    return [text[: most // (4 * len(texts)) - 1] for text in texts]
