"""The view of each request from outside: the id of its answer, its count and time, and perhaps a trace."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.gateway.correlation import GONE, REQUEST, Asked
from client.gateway.metrics import Metrics
from client.gateway.problems import RERANK_ROUTES, Problem
from client.gateway.traces import Traces
from client.wire import METADATA, REQUEST_ID

OTHER = "other"


class Observed:
    """Names requests, and counts them by route, status code and key, their times, and those in flight."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces | None, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._traces, self._routes = app, metrics, traces, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        route = scope["path"] if scope["path"] in self._routes else OTHER  # paths are the caller's: no end of labels
        asked = Asked.by(Headers(scope=scope))
        REQUEST.set(asked)  # in this request's task, and in those that it starts
        METADATA.set(asked.metadata)
        if self._traces is None or route not in RERANK_ROUTES:
            return await self._serve(route, asked, scope, receive, send)
        with self._traces.request(scope["method"], route, asked):
            await self._serve(route, asked, scope, receive, send)

    async def _serve(self, route: str, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        named, begun = (REQUEST_ID.encode(), asked.id.encode()), time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.code = message["status"]
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            except Exception:  # which uvicorn logs
                if asked.code == GONE:  # nothing was sent
                    problem = Problem(500, "the gateway failed: its log says why", "Backend")
                    await problem.answer()(scope, receive, watched)
                asked.code = 500
                raise
            finally:
                self._metrics.answered(route, asked.code, time.perf_counter() - begun, asked.key)
