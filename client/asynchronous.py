"""The client of asyncio, with the methods of client/ranking.py."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Any

import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from client import wire
from client.attempts import Attempts, Caller
from client.errors import RankingError
from client.ranking import PARTS_AT_ONCE
from client.records import Document, DocumentLike, RankedDocument, RankingRequest, Scores, ranked


class AsyncRankingClient(Caller):
    """Connections to one or several servers, for the event loop of the first call. Every call may raise a RankingError;
    one that is cancelled cancels its requests to the server."""

    def _open(self) -> None:  # not before an event loop runs: see _clients
        self._opened: list[grpc.InferenceServerClient] = []

    async def __aenter__(self) -> AsyncRankingClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        opened, self._opened = self._opened, []
        await asyncio.gather(*(client.close() for client in opened))

    async def is_ready(self) -> bool:
        """Whether at least one server answers and serves the model."""
        return any(await asyncio.gather(*(self._is_ready(client) for client in self._clients)))

    async def document_limit(self) -> int:
        """Documents that a request to the server may have; asked once. More are split and merged."""
        if not self._limit:
            limit_s = self.connection.timeout_s
            self._limit = await self._ask_limit(time.monotonic() + limit_s, limit_s)
        return self._limit

    async def score(
        self, query: str, documents: Iterable[DocumentLike], *, timeout_s: float | None = None
    ) -> list[float]:
        """A logit per document, in the caller's order."""
        logits: list[float] = (await self.score_documents(query, documents, timeout_s=timeout_s)).logits.tolist()
        return logits

    async def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[RankedDocument]:
        """The documents from the best score down, equal scores in the caller's order; all, or the first ``top_k``."""
        candidates = wire.checked(query, documents, top_k)
        return ranked(candidates, await self._score(query, candidates, timeout_s), top_k)

    async def score_documents(
        self, query: str, documents: Iterable[DocumentLike], *, timeout_s: float | None = None
    ) -> Scores:
        """Logits, and what was cut, in the caller's order."""
        return await self._score(query, wire.checked(query, documents), timeout_s)

    async def rank_many(
        self,
        requests: Iterable[RankingRequest] | AsyncIterable[RankingRequest],
        top_k: int | None = None,
        *,
        max_in_flight: int = 8,
        return_errors: bool = False,
    ) -> AsyncIterator[Any]:
        """As RankingClient.rank_many; ``requests`` may come asynchronously."""
        places = asyncio.Semaphore(max_in_flight)
        waiting: deque[asyncio.Task[list[RankedDocument]]] = deque()

        async def rank(request: RankingRequest) -> list[RankedDocument]:
            async with places:
                return await self.rank(request.query, request.documents, top_k)

        try:
            async for request in _asynchronous(requests):
                waiting.append(asyncio.create_task(rank(request)))
                if len(waiting) == 2 * max_in_flight:
                    yield await _outcome(waiting.popleft(), return_errors)
            while waiting:
                yield await _outcome(waiting.popleft(), return_errors)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _score(self, query: str, documents: Sequence[Document], timeout_s: float | None) -> Scores:
        limit_s = self.connection.timeout_s if timeout_s is None else timeout_s
        ends = time.monotonic() + limit_s
        if not self._limit:
            self._limit = await self._ask_limit(ends, limit_s)
        if len(documents) <= self._limit:
            return await self._infer(query, documents, ends, limit_s)
        places = asyncio.Semaphore(PARTS_AT_ONCE)

        async def score_part(part: slice) -> Scores:
            async with places:
                try:
                    return await self._infer(query, documents[part], ends, limit_s)
                except RankingError as error:
                    raise wire.of_part(error, part) from error

        parts = [asyncio.create_task(score_part(part)) for part in wire.parts(documents, self._limit)]
        try:
            return wire.joined(await asyncio.gather(*parts))
        finally:
            for part in parts:
                part.cancel()

    async def _infer(self, query: str, documents: Sequence[Document], ends: float, limit_s: float) -> Scores:
        inputs, settings = wire.inputs(query, documents), self.connection
        for attempt in Attempts(settings, self._balancer, len(documents), ends, limit_s):
            if attempt.pause_s:
                await asyncio.sleep(attempt.pause_s)
            with attempt:
                result = await self._clients[attempt.server].infer(
                    settings.model,
                    inputs,
                    settings.version,
                    client_timeout=attempt.left_s,
                    headers=settings.headers,
                )
                return wire.scores(result, len(documents), settings.servers[attempt.server])
        raise AssertionError  # the attempts end by raising

    async def _ask_limit(self, ends: float, limit_s: float) -> int:
        settings = self.connection
        for attempt in Attempts(settings, self._balancer, 0, ends, limit_s):
            if attempt.pause_s:
                await asyncio.sleep(attempt.pause_s)
            with attempt:
                config = await self._config(attempt.server, settings.model, settings.version, attempt.left_s)
                wire.check_ranker(config, settings.model, settings.servers[attempt.server])
                asked = (self._config(attempt.server, model, "", attempt.left_s) for model in wire.steps(config))
                return wire.limit(await asyncio.gather(*asked))
        raise AssertionError

    async def _config(self, server: int, model: str, version: str, left_s: float) -> dict[str, Any]:
        answer = await self._clients[server].get_model_config(
            model, version, headers=self.connection.headers, as_json=True, client_timeout=left_s
        )
        config: dict[str, Any] = answer["config"]
        return config

    @property
    def _clients(self) -> list[grpc.InferenceServerClient]:
        """Opened at the first call: a channel belongs to the event loop that runs then."""
        if not self._opened:
            channel = self.connection.channel()
            self._opened = [grpc.InferenceServerClient(server, **channel) for server in self.connection.servers]
        return self._opened

    async def _is_ready(self, client: grpc.InferenceServerClient) -> bool:
        settings = self.connection
        try:
            ready = await client.is_model_ready(
                settings.model, settings.version, headers=settings.headers, client_timeout=settings.timeout_s
            )
        except InferenceServerException:
            return False
        return bool(ready)


async def _asynchronous(
    requests: Iterable[RankingRequest] | AsyncIterable[RankingRequest],
) -> AsyncIterator[RankingRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


async def _outcome(
    task: asyncio.Task[list[RankedDocument]], return_errors: bool
) -> list[RankedDocument] | RankingError:
    try:
        return await task
    except RankingError as error:
        if return_errors:
            return error
        raise
