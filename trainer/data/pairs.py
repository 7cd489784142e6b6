"""Queries and their documents as encoded pairs."""

from __future__ import annotations

from collections.abc import Sequence

from model_repository.tokenizer.pair_encoding import Document, EncodedPair, PairEncoder
from trainer.data.records import JudgedDocument


def encode_group(encoder: PairEncoder, query: str, documents: Sequence[JudgedDocument]) -> list[EncodedPair]:
    """The pairs of a query, in its documents' order; unlike a request, of any number."""
    texts = [Document(document.title, document.summary) for document in documents]
    step = encoder.config.max_documents
    return [pair for start in range(0, len(texts), step) for pair in encoder.encode(query, texts[start : start + step])]
