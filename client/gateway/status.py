"""The models that are served, and whether they are well, as probes, Prometheus and clients ask for it."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from client import DISTRIBUTION
from client.gateway.problems import RETRY
from client.gateway.ranker import TheRanker

BEGUN = int(time.time())


class Health(BaseModel):
    """``ready`` if all models are served, ``degraded`` if the default one is and others are not."""

    status: Literal["ready", "degraded", "unavailable"]
    models: dict[str, bool]


class Live(BaseModel):
    """The gateway answers, whatever its ranking servers do."""

    status: Literal["live"] = "live"


class Model(BaseModel):
    """A model, as Cohere lists it."""

    name: str
    endpoints: list[str] = ["rerank"]
    is_default: bool


class OpenAIModel(BaseModel):
    """A model, as OpenAI lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int = BEGUN
    owned_by: str = "disranker"


class Models(BaseModel):
    """All models, in both formats; the first is the default."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]
    models: list[Model]


class Info(BaseModel):
    """As text-embeddings-inference tells of itself, as far as the gateway knows it; the rest is null."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str = "float32"  # of the scores
    model_type: dict[Literal["reranker"], dict[str, Any]] = {
        "reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    }
    max_concurrent_requests: int
    max_input_length: int | None = None
    max_batch_tokens: int | None = None
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = True
    tokenization_workers: int | None = None
    version: str = version(DISTRIBUTION)
    sha: str | None = None
    docker_label: str | None = None


router = APIRouter(tags=["status"])


@router.get("/health", operation_id="health", responses={503: {"model": Health}})
@router.get("/readyz", operation_id="readyz", responses={503: {"model": Health}})
@router.get("/.well-known/ready", include_in_schema=False)  # Weaviate
async def health(ranker: TheRanker, response: Response) -> Health:
    """200 if the default model is served, for readiness probes."""
    models = await ranker.ready()
    if all(models.values()):
        return Health(status="ready", models=models)
    if models[ranker.models[0]]:
        return Health(status="degraded", models=models)
    response.status_code = 503
    response.headers.update(RETRY)
    return Health(status="unavailable", models=models)


@router.get("/livez", operation_id="livez")
@router.get("/.well-known/live", include_in_schema=False)
async def live() -> Live:
    """200 as long as the gateway answers, for liveness probes: another process would not help its ranking servers."""
    return Live()


@router.get(
    "/metrics", operation_id="metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
)
async def prometheus(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", operation_id="models")
async def models(ranker: TheRanker) -> Models:
    """Names that a request's `model` may have, in the formats of OpenAI (`data`) and Cohere (`models`)."""
    return Models(
        data=[OpenAIModel(id=name) for name in ranker.models],
        models=[Model(name=name, is_default=not index) for index, name in enumerate(ranker.models)],
    )


@router.get("/info", operation_id="info")
async def info(ranker: TheRanker, request: Request) -> Info:
    """The default model and the limits, in the format of text-embeddings-inference."""
    settings = request.app.state.settings
    return Info(
        model_id=ranker.models[0],
        max_concurrent_requests=settings.max_concurrent,
        max_client_batch_size=settings.max_documents,
    )


ROUTES = [route.path for route in router.routes if isinstance(route, APIRoute)]
