"""Queries and their documents as encoded pairs."""

from __future__ import annotations

from collections.abc import Iterable

from model_repository.tokenizer.pair_encoding import Document, FlatPairs, PairEncoder
from trainer.data.records import QueryGroup


def encode_groups(encoder: PairEncoder, groups: Iterable[QueryGroup]) -> FlatPairs:
    """The pairs of all groups, in the order of their documents."""
    return FlatPairs.join([encoder.encode(group.query, _texts(group)) for group in groups])


def _texts(group: QueryGroup) -> list[Document]:
    return [Document(title=document.title, summary=document.summary) for document in group.documents]
