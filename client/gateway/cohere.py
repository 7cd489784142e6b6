"""POST /v1/rerank and /v2/rerank in the format of Cohere, and of Jina, which adds other fields to the answer."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from client import Document, Scores
from client.gateway.limits import LimitS
from client.gateway.problems import COHERE_ROUTES, Problem, responses
from client.gateway.ranker import Text, TheRanker, best_first, tell_truncated
from client.records import sigmoid

UNIT_DOCUMENTS = 100  # Cohere's search unit: a query with up to so many documents

VERSIONS = dict(zip(COHERE_ROUTES, ("1", "2"), strict=True))
Given = Text | dict[Text, Text]


class RerankRequest(BaseModel):
    """A request. Fields that are not named here are ignored."""

    model_config = ConfigDict(strict=True)

    query: Annotated[str, Field(min_length=1, examples=["mend a cheap bike"])]
    documents: Annotated[list[Given], Field(min_length=1, examples=[["Affordable bicycle repair", "Garden bridges"]])]
    model: Annotated[str | None, Field(description="a name of /v1/models; the first of them if there is none")] = None
    top_n: Annotated[PositiveInt | None, Field(description="the best only")] = None
    return_documents: Annotated[bool | None, Field(description="with the documents as they came")] = False
    rank_fields: Annotated[list[Text] | None, Field(description="of objects; otherwise text, or title and summary")] = (
        None
    )
    max_chunks_per_doc: Annotated[PositiveInt | None, Field(description="lowers the gateway's own limit")] = None
    max_tokens_per_doc: Annotated[PositiveInt | None, Field(description="not applied; meta.warnings says so")] = None


class Result(BaseModel):
    """A document of the answer."""

    index: int
    relevance_score: float  # a probability
    truncated: bool  # with the query, the document was longer than the model reads
    document: dict[str, str] | None = None


class Meta(BaseModel):
    """The part of an answer that Cohere's clients read beside the results. Nobody is billed."""

    api_version: dict[Literal["version"], str]
    billed_units: dict[Literal["search_units"], int]
    warnings: list[str] | None = None


class Usage(BaseModel):
    """The part of an answer that Jina's clients read beside the results. Tokens are not known here."""

    documents: int
    truncated_documents: int


class RerankResponse(BaseModel):
    """The answer; the best document is the first."""

    id: str
    model: str
    results: list[Result]
    meta: Meta
    usage: Usage


router = APIRouter(tags=["Cohere and Jina"])


@router.post(
    COHERE_ROUTES[0], response_model_exclude_none=True, responses=responses(COHERE_ROUTES[0]), operation_id="rerank_v1"
)
@router.post(
    COHERE_ROUTES[1], response_model_exclude_none=True, responses=responses(COHERE_ROUTES[1]), operation_id="rerank_v2"
)
async def rerank(
    body: RerankRequest, ranker: TheRanker, limit_s: LimitS, request: Request, response: Response
) -> RerankResponse:
    """Documents by their relevance to a query, the best first."""
    documents = [_document(item, index, body.rank_fields) for index, item in enumerate(body.documents)]
    model = ranker.named(body.model)
    scores = await ranker.score(model, body.query, documents, limit_s, body.max_chunks_per_doc)
    tell_truncated(response, scores)
    return RerankResponse(
        id=str(uuid.uuid4()),
        model=model,
        results=[_result(index, body, scores) for index in best_first(scores, body.top_n)],
        meta=Meta(
            api_version={"version": VERSIONS[request.scope["route"].path]},
            billed_units={"search_units": math.ceil(len(documents) / UNIT_DOCUMENTS)},
            warnings=list(_warnings(body, scores)) or None,
        ),
        usage=Usage(documents=len(documents), truncated_documents=int(scores.truncated.sum())),
    )


def _document(item: Given, index: int, rank_fields: list[str] | None) -> Document:
    """Cohere knows strings and ``text``; titles and summaries are ours, and have fields of their own."""
    if isinstance(item, str):
        return Document(summary=item)
    fields = rank_fields or (["text"] if "text" in item else ["title", "summary"])
    found = [name for name in fields if name in item]
    if not found:
        names = " or ".join(rank_fields or ("text", "title", "summary"))
        raise Problem(422, f"documents[{index}]: an object needs the field {names}")
    text = "\n".join(item[name] for name in found if name != "title")
    return Document(title=item["title"] if "title" in found else "", summary=text)


def _result(index: int, body: RerankRequest, scores: Scores) -> Result:
    document: Any = None
    if body.return_documents:
        given = body.documents[index]
        document = {"text": given} if isinstance(given, str) else given
    probability = sigmoid(float(scores.logits[index]))
    truncated = bool(scores.truncated[index])
    return Result(index=index, relevance_score=probability, truncated=truncated, document=document)


def _warnings(body: RerankRequest, scores: Scores) -> Iterator[str]:
    if cut := int(scores.truncated.sum()):
        count = len(body.documents)
        yield f"{cut} of {count} documents, with the query, were longer than the model reads: see truncated"
    if body.max_tokens_per_doc is not None:
        yield "max_tokens_per_doc is not applied: documents are cut at the model's own length"
