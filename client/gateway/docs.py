"""The page /docs: Swagger, which loads nothing from elsewhere."""

from __future__ import annotations

import re

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from client.gateway.page import digest

STATIC = "/static-offline-docs"  # where fastapi_offline has its files


def add_docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def show(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title}: the API",
            swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{root}{STATIC}/favicon.png",
        )
        page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
        return page


def _policy(html: str) -> str:
    """Only its own script and those of the gateway may run. Swagger sets styles of elements."""
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    return (
        f"default-src 'none'; script-src 'self' {digest(script)}; style-src 'self' 'unsafe-inline'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
