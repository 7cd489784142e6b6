"""Checks before a request is parsed. It is counted, needs a key and a free place, and has a limited size."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.gateway.encodings import unpacked
from client.gateway.limits import ARRIVED
from client.gateway.metrics import Metrics
from client.gateway.problems import RERANK_ROUTES, RETRY, Problem
from client.gateway.settings import Settings

GONE = 499  # nginx's code for a client that did not wait
OTHER = "other"


class Counting:
    """Counts requests by route and status code, their times, and those in flight."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        route = scope["path"] if scope["path"] in self._routes else OTHER  # paths are the caller's: no end of labels
        code, begun = GONE, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            except Exception:
                code = 500
                raise
            finally:
                self._metrics.requests.labels(route, code).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - begun)


class Guard:
    """Stands before the rerank routes. The work for a client that goes away is cancelled."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [f"Bearer {key.get_secret_value()}".encode() for key in settings.api_keys]
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in RERANK_ROUTES or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scope.setdefault("state", {})[ARRIVED] = time.monotonic()
        try:
            self._check_key(headers)
            with self._place():
                if (body := await self._body(headers, receive)) is not None:
                    await self._work(body, scope, receive, send)
        except Problem as problem:
            await problem.answer()(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        given = headers.get("authorization", "").encode("latin-1")  # the bytes that came
        scheme, _, key = given.partition(b" ")
        given = scheme.capitalize() + b" " + key.strip()  # Cohere's documentation writes it small
        matches = [hmac.compare_digest(given, key) for key in self._keys]  # all of them: the time tells nothing
        if matches and not any(matches):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "an API key is needed, as Authorization: Bearer KEY", headers=challenge)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._inside >= self._settings.max_concurrent:
            message = f"{self._inside} requests are being worked on already: try again"
            raise Problem(429, message, "Overloaded", RETRY)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def _work(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._app(scope, _replay(body), send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """Read the body; None if the client went away in the middle of it."""
        limit = self._settings.max_body_bytes
        too_large = Problem(413, f"the body is larger than {limit} bytes: send fewer documents at a time")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.timeout):
                while (message := await receive())["type"] == "http.request":
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return unpacked(bytes(body), headers.get("content-encoding", ""), limit)
        except TimeoutError as error:
            raise Problem(408, f"the body took longer than {self._settings.timeout:g} s") from error
        return None


def _replay(body: bytes) -> Receive:
    """Hand on the body that was read already. Later messages are for the task that watches the connection."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # for ever
        raise AssertionError

    return replayed


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
