"""The routes that rank and score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Response

from client import Document, Scores, Truncation
from client.concurrency import async_in_order
from client.gateway.answers import DataAnswer, Rank, Ranking, ResultsAnswer, ScoreAnswer, WeaviateAnswer, scored
from client.gateway.dialects import (
    Common,
    Mixedbread,
    RerankRequest,
    SelfHosted,
    Tei,
    Voyage,
    Weaviate,
)
from client.gateway.fields import QUERY_EXAMPLE, TEXTS_EXAMPLE, form_of
from client.gateway.limits import LimitS
from client.gateway.pairs import ScoreRequest, ScoreTexts
from client.gateway.problems import COHERE_ROUTES, SCORE_ROUTES, SELF_HOSTED_ROUTES, Problem, responses
from client.gateway.ranker import Ranker, TheRanker, tell_truncated
from client.records import AT_END

QUERIES_AT_ONCE = 8  # of a score request

FORMS: dict[str, dict[str, Any]] = {
    "Cohere, Jina, vLLM": {"documents": TEXTS_EXAMPLE, "top_n": 1},
    "Voyage": {"documents": TEXTS_EXAMPLE, "top_k": 1},
    "mixedbread": {"input": TEXTS_EXAMPLE, "top_k": 1},
    "text-embeddings-inference": {"texts": TEXTS_EXAMPLE, "raw_scores": True},
    "Weaviate": {"documents": TEXTS_EXAMPLE, "property": ""},
}
EXAMPLES: dict[str, Any] = {name: {"value": {"query": QUERY_EXAMPLE, **fields}} for name, fields in FORMS.items()}
ONE_OF_FORMS = Body(openapi_examples=EXAMPLES)

# What the routes take: their own form is the last, which a request has that shows no mark of another one. Only Cohere
# has a /v2, where a field of another vendor is a mistake.
OTHERS = Mixedbread | Tei | Weaviate | Voyage
V1 = Annotated[Common | OTHERS, form_of(Mixedbread, Tei, Weaviate, Voyage, Common), ONE_OF_FORMS]
SelfHostedForms = Annotated[SelfHosted | OTHERS, form_of(Mixedbread, Tei, Weaviate, Voyage, SelfHosted), ONE_OF_FORMS]
ScoreForms = Annotated[ScoreTexts | ScoreRequest, form_of(ScoreTexts, ScoreRequest)]
Answer = ResultsAnswer | DataAnswer | WeaviateAnswer | list[Rank]

router = APIRouter()


async def rerank_v1(body: V1, ranker: TheRanker, limit_s: LimitS, response: Response) -> Any:
    """Documents by their relevance to a query, the best first, in the form of Cohere, Jina, Voyage or others."""
    return await _rerank(body, ranker, limit_s, response, "1")


async def rerank_v2(body: Common, ranker: TheRanker, limit_s: LimitS, response: Response) -> Any:
    """Documents by their relevance to a query, the best first, in Cohere's form."""
    return await _rerank(body, ranker, limit_s, response, "2")


async def rerank(body: SelfHostedForms, ranker: TheRanker, limit_s: LimitS, response: Response) -> Any:
    """Documents by their relevance to a query, the best first.

    In the form of text-embeddings-inference (`texts`), vLLM, Infinity and llama.cpp (`documents`), mixedbread
    (`input`), Voyage (`top_k`) or Weaviate (`property`).
    """
    return await _rerank(body, ranker, limit_s, response, "1")


async def score(body: ScoreForms, ranker: TheRanker, limit_s: LimitS, response: Response) -> ScoreAnswer:
    """The scores of pairs of a query and a document, in their order, as vLLM's score API has it."""
    pairs, places = body.pairs(), dict[str, list[int]]()
    ranker.check_count(len(pairs))
    for place, (query, _) in enumerate(pairs):
        places.setdefault(query, []).append(place)
    model, truncation = ranker.named(body.model), Truncation(side=body.truncation_side or AT_END.side)

    async def score_one(query: str) -> Scores:
        documents = [Document(summary=pairs[place][1]) for place in places[query]]
        return await ranker.score(model, query, documents, limit_s, truncation=truncation)

    found = [part async for part in async_in_order(score_one, [*places], QUERIES_AT_ONCE)]
    order = np.argsort(np.concatenate([*places.values()]))
    scores = Scores(*(np.concatenate(parts)[order] for parts in zip(*found, strict=True)))
    tell_truncated(response, scores)
    return scored(Ranking(model, scores, "1"), body.use_activation is False)


async def _rerank(body: RerankRequest, ranker: Ranker, limit_s: float | None, response: Response, version: str) -> Any:
    options, model = body.options(), ranker.named(body.model)
    scores = await ranker.score(model, body.query, body.texts(), limit_s, options.max_chunks, options.truncation)
    tell_truncated(response, scores)
    if options.whole and scores.truncated.any():
        place = f"{body.name_of('documents')}[{int(np.argmax(scores.truncated))}]"
        raise Problem(body.TOO_LONG, f"{place} with the query is longer than the model reads, and is not to be cut")
    return body.answer(Ranking(model, scores, version))


def _add(paths: Iterable[str], endpoint: Any, answer: Any, tag: str, summary: str) -> None:
    for path in paths:
        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=answer,
            tags=[tag],
            summary=summary,
            operation_id=path.strip("/").replace("/", "_"),
            response_model_exclude_none=True,
            responses=responses(),
        )


_add(COHERE_ROUTES[:1], rerank_v1, Answer, "rerank", "Cohere, Jina, Voyage")
_add(COHERE_ROUTES[1:], rerank_v2, ResultsAnswer, "rerank", "Cohere")
_add(SELF_HOSTED_ROUTES, rerank, Answer, "rerank", "TEI, vLLM, Infinity, llama.cpp, mixedbread, Weaviate")
_add(SCORE_ROUTES, score, ScoreAnswer, "score", "vLLM's score API")
