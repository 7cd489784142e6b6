"""Components for LangChain, LlamaIndex and Haystack, which ask ranking servers over gRPC; each needs its framework."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from client import AsyncRankingClient, RankingClient
from client.flags import AUTHORIZATION


def clients_of(
    servers: str | Sequence[str], model: str, settings: Mapping[str, Any]
) -> tuple[RankingClient, AsyncRankingClient]:
    """The clients of a component. Without ``authorization`` in ``settings`` that of the environment is sent."""
    whole = {"authorization": os.environ.get(AUTHORIZATION) or None, **settings}
    return RankingClient(servers, model, **whole), AsyncRankingClient(servers, model, **whole)


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they may be saved where others read them."""
    return {name: value for name, value in settings.items() if name != "authorization"}
