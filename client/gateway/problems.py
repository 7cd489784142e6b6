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

COHERE_ROUTES = ("/v1/rerank", "/v2/rerank")
SCORE_ROUTES = ("/score", "/v1/score")
SELF_HOSTED_ROUTES = ("/rerank", "/reranking", "/v1/reranking")
RERANK_ROUTES = (*COHERE_ROUTES, *SELF_HOSTED_ROUTES, *SCORE_ROUTES)
RETRY = {"Retry-After": "1"}  # seconds
# Codes of bad values, by Pydantic's types of errors: 400 as at Cohere, where wrong types and unknown fields are 422.
BAD_VALUES = {"too_short": 400, "string_too_short": 400, "greater_than_equal": 400, "less_than_equal": 400}
BAD_VALUES["value_error"] = 422


class Error(BaseModel):
    """An error, under the name that each client reads: one line, three times."""

    message: str = Field(examples=["query: String should have at least 1 character"])  # Cohere
    detail: str  # Jina, Voyage
    error: str  # text-embeddings-inference
    error_type: str = Field(examples=["Validation"])
    request_id: str | None = Field(None, description="as in the header X-Request-Id, and in the gateway's log")


class Problem(Exception):  # noqa: N818 - most are the caller's
    """An answer that is not 200; ``kind`` is text-embeddings-inference's error_type."""

    def __init__(
        self, status: int, message: str, kind: str = "Validation", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.headers = status, message, kind, dict(headers or {})

    def answer(self) -> JSONResponse:
        asked = REQUEST.get()
        body = Error(
            message=self.message,
            detail=self.message,
            error=self.message,
            error_type=self.kind,
            request_id=None if asked is None else asked.id,
        )
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
    if errors[0]["type"] == "unknown_field":
        return Problem(422, errors[0]["msg"])
    if not (place := _place(errors[0])):
        return Problem(422, "the body must be a JSON object, with the header Content-Type: application/json")
    reasons = {error["type"]: error["msg"] for error in errors if _place(error) == place}
    for kind in reasons.keys() & BAD_VALUES:  # of the right type then, and of no other in a union
        message = f"{place}: {reasons[kind].removeprefix('Value error, ')}"
        return Problem(BAD_VALUES[kind], message, "Empty" if "short" in kind else "Validation")
    return Problem(422, f"{place}: {' or '.join(dict.fromkeys(reasons.values()))}")


def _place(error: Mapping[str, Any]) -> str:
    """The name of the field, with the index in a list, without the branch of a union."""
    _, *where = error["loc"]
    index = f"[{where[1]}]" if len(where) > 1 and isinstance(where[1], int) else ""
    return f"{where[0]}{index}" if where else ""


def responses() -> dict[int | str, dict[str, Any]]:
    """The errors of a route that ranks, for the OpenAPI description."""
    codes = (400, 401, 404, 408, 413, 415, 422, 429, 502, 503, 504)
    return {code: {"model": Error, "description": HTTPStatus(code).phrase} for code in codes}
