"""The answers to rerank and score requests, in the forms that clients read."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from client import Scores
from client.records import sigmoid

UNIT_DOCUMENTS = 100  # Cohere's search unit: a query with up to so many documents


class Ranking(NamedTuple):
    """The content of all forms of an answer."""

    model: str
    scores: Scores
    version: str  # of Cohere's API

    def best_first(self, top_n: int | None, raw: bool) -> Iterator[tuple[int, float, bool]]:
        """Index, score and whether it was cut; equal scores in the caller's order. ``raw`` scores are logits."""
        logits, truncated = self.scores
        for index in np.argsort(-logits, kind="stable")[: top_n or None].tolist():
            yield index, score_of(logits[index], raw), bool(truncated[index])

    @property
    def cut(self) -> int:
        return int(self.scores.truncated.sum())


def score_of(logit: np.float32, raw: bool) -> float:
    return float(logit) if raw else sigmoid(float(logit))


class Usage(BaseModel):
    """Tokens are not counted: clients that need them read 0."""

    documents: int
    truncated_documents: int
    prompt_tokens: int = 0
    total_tokens: int = 0

    @classmethod
    def of(cls, ranking: Ranking) -> Usage:
        return cls(documents=len(ranking.scores.logits), truncated_documents=ranking.cut)


class Result(BaseModel):
    """A document of the common answer."""

    index: int
    relevance_score: float  # a probability, unless logits were asked for
    truncated: bool  # with the query, the document was longer than the model reads
    document: dict[str, Any] | None = None


class Meta(BaseModel):
    """The part of an answer that Cohere's clients read beside the results. Nobody is billed."""

    api_version: dict[Literal["version"], str]
    billed_units: dict[Literal["search_units"], int]
    warnings: list[str] | None = None


class ResultsAnswer(BaseModel):
    """The common answer; the best document is the first."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[Result]
    meta: Meta
    usage: Usage


class Item(BaseModel):
    """A document as Voyage's clients read it, or, with ``score`` and ``input``, mixedbread's."""

    object: Literal["rank_result"] | None = None
    index: int
    relevance_score: float | None = None
    score: float | None = None
    document: str | dict[str, Any] | None = None
    input: str | dict[str, Any] | None = None


class DataAnswer(BaseModel):
    """The answer to Voyage's and mixedbread's clients; the best document is the first."""

    object: Literal["list"] = "list"
    data: list[Item]
    model: str
    usage: Usage
    top_k: int | None = None
    return_input: bool | None = None


class Rank(BaseModel):
    """A text of the answer in text-embeddings-inference's format."""

    index: int
    score: float
    text: str | None = None
    truncated: bool | None = None  # true where the text, with the query, was longer than the model reads; else left out


class DocumentScore(BaseModel):
    """A document as Weaviate reads it."""

    document: str | dict[str, Any]
    score: float


class WeaviateAnswer(BaseModel):
    """The answer to Weaviate's module reranker-transformers, in the caller's order."""

    query: str
    scores: list[DocumentScore]


class Score(BaseModel):
    """The score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreAnswer(BaseModel):
    """The answer of vLLM's score API, in the caller's order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage


def results(found: Sequence[Result], ranking: Ranking) -> ResultsAnswer:
    count, cut = len(ranking.scores.logits), ranking.cut
    warning = f"{cut} of {count} documents, with the query, were longer than the model reads: see truncated"
    meta = Meta(
        api_version={"version": ranking.version},
        billed_units={"search_units": math.ceil(count / UNIT_DOCUMENTS)},
        warnings=[warning] if cut else None,
    )
    return ResultsAnswer(**_head(ranking), results=list(found), meta=meta)


def listed(items: Sequence[Item], ranking: Ranking, **beside: Any) -> DataAnswer:
    return DataAnswer(data=list(items), model=ranking.model, usage=Usage.of(ranking), **beside)


def scored(ranking: Ranking, raw: bool) -> ScoreAnswer:
    data = [Score(index=index, score=score_of(logit, raw)) for index, logit in enumerate(ranking.scores.logits)]
    return ScoreAnswer(**_head(ranking), data=data)


def _head(ranking: Ranking) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "created": int(time.time()),
        "model": ranking.model,
        "usage": Usage.of(ranking),
    }
