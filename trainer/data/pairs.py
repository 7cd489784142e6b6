"""Queries and their documents as encoded pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from model_repository.tokenizer.pair_encoding import Document, FlatPairs, PairEncoder
from trainer.data.records import JudgedDocument


class Group(Protocol):
    """A query with its documents, judged or drawn for a training step."""

    @property
    def query(self) -> str: ...

    @property
    def documents(self) -> Sequence[JudgedDocument]: ...


def encode_groups(encoder: PairEncoder, groups: Iterable[Group]) -> FlatPairs:
    """The pairs of all groups, in the order of their documents."""
    return FlatPairs.join([encoder.encode(group.query, _texts(group)) for group in groups])


def _texts(group: Group) -> list[Document]:
    return [Document(title=document.title, summary=document.summary) for document in group.documents]
