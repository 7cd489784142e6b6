"""Errors as a status code and a body in the format of the API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from client import (
    InvalidRequestError,
    ModelNotReadyError,
    RankingError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from client.gateway.correlation import REQUEST

TEI_ROUTE = "/rerank"
COHERE_ROUTES = ("/v1/rerank", "/v2/rerank")
RERANK_ROUTES = (*COHERE_ROUTES, TEI_ROUTE)
RETRY = {"Retry-After": "1"}  # seconds


REQUEST_ID: Any = Field(None, description="as in the header X-Request-Id, and in the gateway's log")


class CohereError(BaseModel):
    """An error of /v1/rerank and /v2/rerank."""

    message: str = Field(examples=["query: String should have at least 1 character"])
    request_id: str | None = REQUEST_ID


class TeiError(BaseModel):
    """An error of /rerank."""

    error: str = Field(examples=["`texts` cannot be empty"])
    error_type: str = Field(examples=["Empty"])
    request_id: str | None = REQUEST_ID


class Problem(Exception):  # noqa: N818 - most are the caller's
    """An answer that is not 200; ``kind`` is text-embeddings-inference's error_type."""

    def __init__(
        self, status: int, message: str, kind: str = "Validation", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.headers = status, message, kind, dict(headers or {})

    def answer(self, path: str) -> JSONResponse:
        asked = REQUEST.get()
        request_id = None if asked is None else asked.id
        if path == TEI_ROUTE:
            body: BaseModel = TeiError(error=self.message, error_type=self.kind, request_id=request_id)
        else:
            body = CohereError(message=self.message, request_id=request_id)
        return JSONResponse(body.model_dump(), self.status, self.headers)


def of_ranking(error: RankingError) -> Problem:
    """A RankingError as a Problem. After 503 a later request may succeed; 502 concerns whoever runs the gateway."""
    if isinstance(error, InvalidRequestError):
        return Problem(422, str(error))
    if isinstance(error, RequestTimeoutError):
        return Problem(504, str(error), "Backend")
    if isinstance(error, ServerOverloadedError):
        seconds = max(1, math.ceil(error.retry_after_s))
        return Problem(503, str(error), "Overloaded", {"Retry-After": str(seconds)})
    if isinstance(error, ServerUnavailableError | ModelNotReadyError):
        return Problem(503, str(error), "Unhealthy", RETRY)
    return Problem(502, str(error), "Backend")


def of_body(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Pydantic's errors as a Problem that names the first faulty field. Never the value, which may be text."""
    if errors[0]["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {errors[0]['ctx']['error']}")
    place = _place(errors[0])
    if not place:
        return Problem(422, "the body must be a JSON object, with the header Content-Type: application/json")
    reasons = dict.fromkeys(error["msg"] for error in errors if _place(error) == place)
    return Problem(422, f"{place}: {' or '.join(reasons)}")


def _place(error: Mapping[str, Any]) -> str:
    """The name of the field, with the index in a list, without the branch of a union."""
    _, *where = error["loc"]
    index = f"[{where[1]}]" if len(where) > 1 and isinstance(where[1], int) else ""
    return f"{where[0]}{index}" if where else ""


def responses(route: str) -> dict[int | str, dict[str, Any]]:
    """A route's errors for the OpenAPI description."""
    codes = (400, 401, 408, 413, 422, 429, 502, 503, 504)
    model = TeiError if route == TEI_ROUTE else CohereError
    return {code: {"model": model, "description": HTTPStatus(code).phrase} for code in (*codes, 404)}
