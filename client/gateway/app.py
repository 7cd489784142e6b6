"""The ASGI application: its routes and middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Literal

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from client.gateway import cohere, tei
from client.gateway.docs import add_docs
from client.gateway.guard import Guard
from client.gateway.keys import Keys
from client.gateway.logs import LOG
from client.gateway.metrics import Metrics
from client.gateway.observed import Observed
from client.gateway.page import read_page
from client.gateway.problems import RERANK_ROUTES, RETRY, Problem, of_body
from client.gateway.ranker import Ranker, TheRanker
from client.gateway.settings import Settings
from client.gateway.traces import Traces

ROUTES = frozenset({*RERANK_ROUTES, "/", "/health", "/metrics", "/v1/models", "/docs", "/openapi.json"})


class Health(BaseModel):
    """``ready`` if all models are served, ``degraded`` if the default one is and others are not."""

    status: Literal["ready", "degraded", "unavailable"]
    models: dict[str, bool]


class Model(BaseModel):
    """A model, as Cohere lists it."""

    name: str
    endpoints: list[str] = ["rerank"]
    is_default: bool


class Models(BaseModel):
    """All models; the first is the default."""

    models: list[Model]


def create_app(settings: Settings, keys: Keys, metrics: Metrics) -> FastAPI:
    """Make the application. Raises RankingError for settings that make no sense."""
    connections, traces = settings.connections(), Traces.wanted()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ranker = Ranker(connections, settings, metrics, traces)
        yield
        await app.state.ranker.close()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app: FastAPI = FastAPIOffline(  # its pages load nothing from elsewhere
        title="DisRanker gateway", version=version("disranker"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    # The key is checked before the body is read (Guard); this describes it.
    key = [Security(HTTPBearer(auto_error=False, description="one of --api_keys or --key_file"))] if keys.needed else []
    app.include_router(cohere.router, dependencies=key)
    app.include_router(tei.router, dependencies=key)
    _add_status(app, metrics)
    _add_page(app)
    add_docs(app)
    _add_problems(app)
    app.add_middleware(Guard, settings=settings, keys=keys)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts or ["*"], www_redirect=False)
    app.add_middleware(Observed, metrics=metrics, traces=traces, routes=ROUTES)  # the last is the outermost
    return app


def _add_status(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health", tags=["status"], responses={503: {"model": Health}})
    async def health(ranker: TheRanker, response: Response) -> Health:
        """200 if the default model is served."""
        models = await ranker.ready()
        if all(models.values()):
            return Health(status="ready", models=models)
        if models[ranker.models[0]]:
            return Health(status="degraded", models=models)
        response.status_code = 503
        response.headers.update(RETRY)
        return Health(status="unavailable", models=models)

    @app.get("/metrics", tags=["status"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["status"])
    async def models(ranker: TheRanker) -> Models:
        """Names that a request's `model` may have."""
        return Models(models=[Model(name=name, is_default=not index) for index, name in enumerate(ranker.models)])


def _add_page(app: FastAPI) -> None:
    html, headers = read_page()

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return Response(html, media_type="text/html", headers=headers)


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        if error.status >= 500:
            LOG.warning("%s: %d: %s", request.url.path, error.status, error.message)  # names servers, never text
        return error.answer(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_body(error.errors()).answer(request.url.path)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, error.detail, headers=error.headers).answer(request.url.path)
