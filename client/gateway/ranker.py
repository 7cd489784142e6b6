"""The models behind the gateway, and scoring with one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated

import numpy as np
from fastapi import Depends, Request, Response

from client import AsyncRankingClient, Connection, Document, RankingError, Scores, Truncation
from client.gateway.chunking import split
from client.gateway.metrics import Metrics
from client.gateway.problems import Problem, of_ranking
from client.gateway.settings import Settings
from client.gateway.traces import Traces
from client.records import AT_END

READY_S = 5.0
NAMED_IN_HEADER = 100  # proxies refuse long headers


class Ranker:
    """A client for each model, the default's first. Close it. Raises Problems."""

    def __init__(
        self, connections: Mapping[str, Connection], settings: Settings, metrics: Metrics, traces: Traces | None
    ) -> None:
        self._clients = {name: AsyncRankingClient.of(connection) for name, connection in connections.items()}
        self._settings, self._metrics, self._any_model = settings, metrics, settings.any_model
        self._traces = traces
        metrics.watch(self._clients)

    @property
    def models(self) -> list[str]:
        return list(self._clients)

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def ready(self) -> dict[str, bool]:
        """Whether each model's server serves it."""
        ready = await asyncio.gather(*map(_is_ready, self._clients.values()))
        return dict(zip(self._clients, ready, strict=True))

    def named(self, model: str | None) -> str:
        """The model that a request with this name gets: the default if there is none. Raises Problem."""
        if not model:
            return self.models[0]
        if model in self._clients:
            return model
        if self._any_model is None:
            raise Problem(404, f"no model {model!r}: there is {', '.join(self.models)}")
        return self._any_model

    def check_count(self, documents: int) -> None:
        """Raises Problem for more documents than a request may have."""
        if documents > (limit := self._settings.max_documents):
            raise Problem(413, f"{documents} documents are more than {limit}: send several requests")

    async def score(
        self,
        model: str,
        query: str,
        documents: Sequence[Document],
        limit_s: float | None,
        max_chunks: int | None = None,
        truncation: Truncation = AT_END,
    ) -> Scores:
        """The scores of the documents, in the caller's order, within ``limit_s`` and the gateway's own time limit.
        A piece of a document is cut as a document is."""
        self.check_count(len(documents))
        chunking = self._settings.chunking
        pieces = split(documents, chunking._replace(pieces=min(max_chunks or chunking.pieces, chunking.pieces)))
        try:
            timeout_s = self._settings.timeout if limit_s is None else min(limit_s, self._settings.timeout)
            with self._traces.ranking(model, len(pieces.documents)) if self._traces else nullcontext():
                scored = await self._clients[model].score_documents(
                    query, pieces.documents, timeout_s=timeout_s, truncation=truncation
                )
        except RankingError as error:
            raise of_ranking(error) from error
        scores = pieces.merged(scored)
        self._metrics.count(model, scores, len(pieces.documents))
        return scores


def tell_truncated(response: Response, scores: Scores) -> None:
    """Set headers that tell how many documents were cut, and which (from 0; the first hundred)."""
    cut = np.flatnonzero(scores.truncated)
    if cut.size:
        response.headers["X-Truncated-Count"] = str(cut.size)
        response.headers["X-Truncated-Documents"] = ",".join(map(str, cut[:NAMED_IN_HEADER]))


async def _is_ready(client: AsyncRankingClient) -> bool:
    try:
        return await asyncio.wait_for(client.is_ready(), READY_S)
    except TimeoutError:
        return False


def _of(request: Request) -> Ranker:
    ranker: Ranker = request.app.state.ranker
    return ranker


TheRanker = Annotated[Ranker, Depends(_of)]
