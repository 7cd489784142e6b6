"""Checks before a request is parsed. It needs a key and a free place, which it has until its answer was read."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.gateway.connections import CALLER
from client.gateway.correlation import REQUEST
from client.gateway.encodings import unpacked
from client.gateway.keys import Keys
from client.gateway.limits import ARRIVED
from client.gateway.problems import RERANK_ROUTES, RETRY, Problem
from client.gateway.settings import Settings

PIECE = 64 * 1024  # bytes
PROBES = frozenset({"/health", "/readyz", "/livez"})
PORT = re.compile(r":[0-9]*\Z")


class Hosts:
    """Refuses requests whose ``Host`` is none of those allowed, which are names or ``*.NAME``; none of them is any.

    Probes pass: Kubernetes sends the pod's address.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, [pattern.lower() for pattern in allowed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES or self._allows(Headers(scope=scope).get("host", "")):
            return await self._app(scope, receive, send)
        problem = Problem(400, "the Host of this request is not served here: see --allowed_hosts")
        await problem.answer()(scope, receive, send)

    def _allows(self, header: str) -> bool:
        host = PORT.sub("", header.lower())
        return not self._allowed or any(
            host.endswith(pattern[1:]) if pattern.startswith("*") else host == pattern for pattern in self._allowed
        )


class Guard:
    """Stands before the rerank routes. The work for a client that goes away is cancelled."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in RERANK_ROUTES or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        headers, caller = Headers(scope=scope), scope["state"][CALLER]
        scope["state"][ARRIVED] = time.monotonic()
        try:
            self._check_key(headers, scope)
            with self._place():
                for message in await self._answer(headers, scope, receive):
                    await _send_in_pieces(message, send)
                await caller.has_read()
        except Problem as problem:
            await problem.answer()(scope, receive, send)

    def _check_key(self, headers: Headers, scope: Scope) -> None:
        if self._keys.needed:
            host, _ = scope["client"] or ("", 0)  # None for one that has gone
            name = self._keys.check(headers.get("authorization", ""), host)
            if (asked := REQUEST.get()) is not None:
                asked.key = name

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

    async def _answer(self, headers: Headers, scope: Scope, receive: Receive) -> list[Message]:
        """The answer, whole: nothing of the request is left in memory while it waits to be read. [] if nobody waits."""
        answer = list[Message]()

        async def keep(message: Message) -> None:
            answer.append(message)

        if (body := await self._body(headers, receive)) is None:
            return []
        work = asyncio.ensure_future(self._app(scope, _replay(body), keep))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return answer
            return []
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


async def _send_in_pieces(message: Message, send: Send) -> None:
    """Send no more of it than its caller reads. In one piece, it would all be copied to wait there."""
    body, more_body = message.get("body", b""), message.get("more_body", False)
    if len(body) <= PIECE:
        return await send(message)
    for start in range(0, len(body), PIECE):
        more = more_body or start + PIECE < len(body)
        await send({**message, "body": body[start : start + PIECE], "more_body": more})


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
