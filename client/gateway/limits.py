"""How long the caller of a request waits, by its headers."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Header, Request

ARRIVED = "arrived"  # in a request's state: when its headers were here, by time.monotonic


def _limit_s(
    request: Request,
    x_request_timeout_ms: Annotated[
        float | None, Header(gt=0, allow_inf_nan=False, description="how long the caller waits; at most --timeout")
    ] = None,
    x_envoy_expected_rq_timeout_ms: Annotated[
        float | None, Header(gt=0, allow_inf_nan=False, description="the same, as Envoy and Istio send it")
    ] = None,
) -> float | None:
    """The seconds that are left of what the caller waits; None if it does not say."""
    told = [limit for limit in (x_request_timeout_ms, x_envoy_expected_rq_timeout_ms) if limit is not None]
    if not told:
        return None
    arrived: float = getattr(request.state, ARRIVED)
    return max(0.0, min(told) / 1000 - (time.monotonic() - arrived))


LimitS = Annotated[float | None, Depends(_limit_s)]
