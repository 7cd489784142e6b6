"""POST /rerank in the format of Hugging Face's text-embeddings-inference."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from client import Document, Scores
from client.gateway.limits import LimitS
from client.gateway.problems import TEI_ROUTE, Problem, responses
from client.gateway.ranker import Text, TheRanker, best_first, tell_truncated
from client.records import sigmoid


class TeiRequest(BaseModel):
    """A request. Fields that are not named here are ignored."""

    model_config = ConfigDict(strict=True)

    query: Annotated[str, Field(min_length=1, examples=["mend a cheap bike"])]
    texts: Annotated[list[Text], Field(examples=[["Affordable bicycle repair", "Garden bridges"]])]
    raw_scores: Annotated[bool, Field(description="logits instead of probabilities")] = False
    return_text: bool = False
    truncate: Annotated[bool | None, Field(description="false: a text that is too long is an error")] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"], Field(description="left is refused where a text is too long")
    ] = "right"
    model: Annotated[str | None, Field(description="of this gateway's: a name of /v1/models")] = None


class Rank(BaseModel):
    """A text of the answer."""

    index: int
    score: float
    text: str | None = None
    truncated: bool | None = None  # true where the text, with the query, was longer than the model reads; else left out


router = APIRouter(tags=["text-embeddings-inference"])


@router.post(TEI_ROUTE, response_model_exclude_none=True, responses=responses(TEI_ROUTE), operation_id="rerank_tei")
async def rerank(body: TeiRequest, ranker: TheRanker, limit_s: LimitS, response: Response) -> list[Rank]:
    """Texts by their relevance to a query, the best first."""
    if not body.texts:
        raise Problem(400, "`texts` cannot be empty", "Empty")
    documents = [Document(summary=text) for text in body.texts]
    scores = await ranker.score(ranker.named(body.model), body.query, documents, limit_s)
    _check_cuts(body, scores)
    tell_truncated(response, scores)
    return [_rank(index, body, scores) for index in best_first(scores)]


def _check_cuts(body: TeiRequest, scores: Scores) -> None:
    cut = np.flatnonzero(scores.truncated)
    if not cut.size:
        return
    if body.truncate is False:
        raise Problem(413, f"`texts[{cut[0]}]` with the query is longer than the model reads: see `truncate`")
    if body.truncation_direction.lower() == "left":
        raise Problem(422, f"`texts[{cut[0]}]` is too long, and only its right end can be cut, not its left")


def _rank(index: int, body: TeiRequest, scores: Scores) -> Rank:
    logit = float(scores.logits[index])
    return Rank(
        index=index,
        score=logit if body.raw_scores else sigmoid(logit),
        text=body.texts[index] if body.return_text else None,
        truncated=True if scores.truncated[index] else None,
    )
