"""The client of threads. client/asynchronous.py has the same methods for asyncio."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from client import wire
from client.attempts import Attempts, Caller
from client.connection import Connection
from client.errors import RankingError, ServerUnavailableError
from client.records import Document, DocumentLike, RankedDocument, RankingRequest, Scores, ranked

PARTS_AT_ONCE = 4


class RankingClient(Caller):
    """Connections to one or several servers, for any number of threads. Every call may raise a RankingError.

    ``settings`` are further fields of Connection. ``timeout_s`` of a call is the client's where it is None.
    """

    def _open(self) -> None:
        self._clients = [open_server(self.connection, server) for server in self.connection.servers]

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def is_ready(self) -> bool:
        """Whether at least one server answers and serves the model."""
        return any(self._is_ready(client) for client in self._clients)

    def document_limit(self) -> int:
        """Documents that a request to the server may have; asked once. More are split and merged."""
        if not self._limit:
            limit_s = self.connection.timeout_s
            self._limit = self._ask_limit(time.monotonic() + limit_s, limit_s)
        return self._limit

    def score(self, query: str, documents: Iterable[DocumentLike], *, timeout_s: float | None = None) -> list[float]:
        """A logit per document, in the caller's order."""
        logits: list[float] = self.score_documents(query, documents, timeout_s=timeout_s).logits.tolist()
        return logits

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[RankedDocument]:
        """The documents from the best score down, equal scores in the caller's order; all, or the first ``top_k``."""
        candidates = wire.checked(query, documents, top_k)
        return ranked(candidates, self._score(query, candidates, timeout_s), top_k)

    def score_documents(
        self, query: str, documents: Iterable[DocumentLike], *, timeout_s: float | None = None
    ) -> Scores:
        """Logits, and what was cut, in the caller's order."""
        return self._score(query, wire.checked(query, documents), timeout_s)

    def rank_many(
        self,
        requests: Iterable[RankingRequest],
        top_k: int | None = None,
        *,
        max_in_flight: int = 8,
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """A ranking for each request, in order; ``max_in_flight`` are under way at a time, and at most twice as many
        are taken from ``requests`` beyond those answered. With ``return_errors`` a request that fails gives its
        RankingError in place of a ranking, else the first failure is raised."""
        waiting: deque[Future[list[RankedDocument]]] = deque()
        with ThreadPoolExecutor(max_in_flight) as pool:
            try:
                for request in requests:
                    waiting.append(pool.submit(self.rank, request.query, request.documents, top_k))
                    if len(waiting) == 2 * max_in_flight:
                        yield _outcome(waiting.popleft(), return_errors)
                while waiting:
                    yield _outcome(waiting.popleft(), return_errors)
            finally:
                for future in waiting:
                    future.cancel()

    def _score(self, query: str, documents: Sequence[Document], timeout_s: float | None) -> Scores:
        limit_s = self.connection.timeout_s if timeout_s is None else timeout_s
        ends = time.monotonic() + limit_s
        if not self._limit:
            self._limit = self._ask_limit(ends, limit_s)
        if len(documents) <= self._limit:
            return self._infer(query, documents, ends, limit_s)

        def score_part(part: slice) -> Scores:
            try:
                return self._infer(query, documents[part], ends, limit_s)
            except RankingError as error:
                raise wire.of_part(error, part) from error

        parts = wire.parts(documents, self._limit)
        with ThreadPoolExecutor(min(PARTS_AT_ONCE, len(parts))) as pool:
            return wire.joined(list(pool.map(score_part, parts)))

    def _infer(self, query: str, documents: Sequence[Document], ends: float, limit_s: float) -> Scores:
        inputs, settings = wire.inputs(query, documents), self.connection
        for attempt in Attempts(settings, self._balancer, len(documents), ends, limit_s):
            if attempt.pause_s:
                time.sleep(attempt.pause_s)
            with attempt:
                result = self._clients[attempt.server].infer(
                    settings.model,
                    inputs,
                    settings.version,
                    client_timeout=attempt.left_s,
                    headers=settings.headers,
                )
                return wire.scores(result, len(documents), settings.servers[attempt.server])
        raise AssertionError  # the attempts end by raising

    def _ask_limit(self, ends: float, limit_s: float) -> int:
        settings = self.connection
        for attempt in Attempts(settings, self._balancer, 0, ends, limit_s):
            if attempt.pause_s:
                time.sleep(attempt.pause_s)
            with attempt:
                client = self._clients[attempt.server]

                def ask(model: str, version: str = "", client: Any = client, left_s: float = attempt.left_s) -> Any:
                    answer = client.get_model_config(
                        model, version, headers=settings.headers, as_json=True, client_timeout=left_s
                    )
                    return answer["config"]

                config = ask(settings.model, settings.version)
                wire.check_ranker(config, settings.model, settings.servers[attempt.server])
                return wire.limit([ask(model) for model in wire.steps(config)])
        raise AssertionError

    def _is_ready(self, client: grpc.InferenceServerClient) -> bool:
        settings = self.connection
        try:
            ready = client.is_model_ready(
                settings.model, settings.version, headers=settings.headers, client_timeout=settings.timeout_s
            )
        except InferenceServerException:
            return False
        return bool(ready)


def open_server(connection: Connection, server: str) -> grpc.InferenceServerClient:
    """tritonclient's own client of one server. Raises ServerUnavailableError for what is no address."""
    try:
        return grpc.InferenceServerClient(server, **connection.channel())
    except InferenceServerException as error:
        raise ServerUnavailableError(
            f"{server!r} is not the address of a gRPC port: {error.message()}", server
        ) from error


def _outcome(future: Future[list[RankedDocument]], return_errors: bool) -> list[RankedDocument] | RankingError:
    try:
        return future.result()
    except RankingError as error:
        if return_errors:
            return error
        raise
