"""The shapes that a request may have on its way: packed bodies, slashes too many, a prefix of a proxy, HEAD."""

from __future__ import annotations

import gzip
import io
import re
import zlib

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from client.gateway.problems import Problem

PACKED_FROM_BYTES = 32 * 2**10  # answers below are not worth the time


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before it was packed.

    Raises Problem for what is not gzip, and for more than ``limit`` bytes, of which no more are unpacked.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        message = f"Content-Encoding: {encoding[:20]!r} is not known here: send gzip, or the body as it is"
        raise Problem(415, message, headers={"Accept-Encoding": "gzip"})
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            plain = file.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise Problem(400, "the body is not gzip, as Content-Encoding says it is, or not the whole of it") from error
    if len(plain) > limit:
        raise Problem(413, f"the unpacked body is larger than {limit} bytes: send fewer documents at a time")
    return plain


class Paths:
    """Lets a route be called as clients and proxies write it.

    Slashes at the end and doubled ones go, and so does ``root_path``, which a proxy may leave in the path or take off.
    HEAD is answered as GET is; the server leaves out the body.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = re.sub("/+", "/", scope["path"])
            if self._root_path and path == self._root_path:  # the addresses in the page are relative
                return await RedirectResponse(f"{path}/")(scope, receive, send)
            if path.startswith(f"{self._root_path}/"):
                path = path.removeprefix(self._root_path)
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "path": path.rstrip("/") or "/", "method": method}
        await self._app(scope, receive, send)


class Rooted:
    """Puts ``root_path`` before the path again, where routes expect it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope.get("root_path", "") + scope["path"]}
        await self._app(scope, receive, send)
