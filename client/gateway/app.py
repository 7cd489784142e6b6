"""The ASGI application: its routes and middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from client import DISTRIBUTION
from client.gateway import rerank, status
from client.gateway.docs import add_docs
from client.gateway.encodings import PACKED_FROM_BYTES, Paths, Rooted
from client.gateway.guard import Guard, Hosts
from client.gateway.keys import Keys
from client.gateway.logs import LOG
from client.gateway.metrics import Metrics
from client.gateway.observed import Observed
from client.gateway.page import read_examples, read_page
from client.gateway.problems import RERANK_ROUTES, Problem, of_body
from client.gateway.ranker import Ranker
from client.gateway.settings import Settings
from client.gateway.traces import Traces

ROUTES = frozenset({*RERANK_ROUTES, "/", "/docs", "/openapi.json", *status.ROUTES})
DESCRIPTION = """
Ranking servers behind the rerank APIs of Cohere, Jina, Voyage, mixedbread, text-embeddings-inference, vLLM, Infinity
and llama.cpp. The names of a request's fields tell which one it has, and the answer has the same. Errors are one line
that says what to do, as `message`, `detail` and `error`.
"""
TAGS = [
    {"name": "rerank", "description": "Documents by their relevance to a query, the best first."},
    {"name": "score", "description": "Scores of pairs of a query and a document, in the caller's order."},
    {"name": "status", "description": "What is served, and whether it is well. No key is needed."},
]


def create_app(settings: Settings, keys: Keys, metrics: Metrics) -> FastAPI:
    """Make the application. Raises RankingError for settings that make no sense."""
    connections, traces = settings.connections(), Traces.wanted()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ranker = Ranker(connections, settings, metrics, traces)
        app.state.metrics, app.state.settings = metrics, settings
        yield
        await app.state.ranker.close()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app: FastAPI = FastAPIOffline(  # its pages load nothing from elsewhere
        title="DisRanker gateway",
        summary="Rankings of a distilled BERT, over HTTP",
        description=DESCRIPTION,
        version=version(DISTRIBUTION),
        openapi_tags=TAGS,
        root_path=settings.root_path,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    # The key is checked before the body is read (Guard); this describes it.
    key = [Security(HTTPBearer(auto_error=False, description="one of --api_keys or --key_file"))] if keys.needed else []
    app.include_router(rerank.router, dependencies=key)
    app.include_router(status.router)
    _add_page(app, settings)
    add_docs(app)
    _add_problems(app)
    app.add_middleware(Rooted)
    app.add_middleware(Guard, settings=settings, keys=keys)
    app.add_middleware(GZipMiddleware, minimum_size=PACKED_FROM_BYTES, compresslevel=1)
    app.add_middleware(Hosts, allowed=settings.allowed_hosts)
    app.add_middleware(Observed, metrics=metrics, traces=traces, routes=ROUTES)
    app.add_middleware(Paths, root_path=settings.root_path)  # the last is the outermost
    return app


def _add_page(app: FastAPI, settings: Settings) -> None:
    html, headers = read_page(read_examples(settings.examples) if settings.examples else ())

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return Response(html, media_type="text/html", headers=headers)


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        if error.status >= 500:
            LOG.warning("%s: %d: %s", request.url.path, error.status, error.message)  # names servers, never text
        return error.answer()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_body(error.errors()).answer()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, error.detail, headers=error.headers).answer()
