"""The client for any number of threads. Made of client/asynchronous.py by client/unasync.py: edit that one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Self, TypeVar

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from client import wire
from client.attempts import AGAIN, FAILED, NOT_FOUND, Balancer, Deadline, pause_s
from client.concurrency import in_order, sleep
from client.connection import Connection
from client.errors import InvalidRequestError, RankingError, RequestTimeoutError, status_of, translated
from client.records import Document, DocumentLike, RankedDocument, RankingRequest, Scores, ranked

PARTS_AT_ONCE = 4
T = TypeVar("T")


class _SmallerLimitError(Exception):
    """A server was met that takes fewer documents in a request than those before."""


class RankingClient:
    """Connections to one or several servers. Every call may raise a RankingError.

    ``settings`` are further fields of Connection. A call whose ``timeout_s`` is None has the client's.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "localhost:8001",
        model: str = "ranker",
        timeout_s: float = 30.0,
        **settings: Any,
    ) -> None:
        several = (servers,) if isinstance(servers, str) else tuple(servers)
        self.connection = Connection(several, model, timeout_s=timeout_s, **settings)
        self._balancer = Balancer(len(several))
        self._limits = dict[int, int]()  # documents that a server takes in a request, once it was asked
        self._lock = threading.Lock()
        self._opened: list[grpc.InferenceServerClient] = []
        self._closed = False

    @classmethod
    def of(cls, connection: Connection) -> Self:
        return cls(**vars(connection))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Requests under way end with an error."""
        with self._lock:
            opened, self._opened, self._closed = self._opened, [], True
        for client in opened:
            client.close()

    def is_ready(self) -> bool:
        """Whether at least one server answers and serves the model."""
        servers = range(len(self.connection.servers))
        return any([ready for ready in in_order(self._serves, servers, len(servers))])

    def document_limit(self) -> int:
        """Documents that every server takes in a request, of those that answer. More are split and merged."""
        deadline = Deadline.after(self.connection.timeout_s)

        def try_to_ask(server: int) -> None:
            with suppress(InferenceServerException, RankingError):  # it is asked again at its first request
                self._limit_of(server, deadline)

        self._attempt(lambda server: self._limit_of(server, deadline), 0, deadline)
        servers = range(len(self.connection.servers))
        for _ in in_order(try_to_ask, servers, len(servers)):
            pass
        return self._limit

    def score(self, query: str, documents: Iterable[DocumentLike], *, timeout_s: float | None = None) -> list[float]:
        """A logit per document, in the caller's order."""
        logits: list[float] = (self.score_documents(query, documents, timeout_s=timeout_s)).logits.tolist()
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
        """A ranking for each request, in order, each as soon as it is there.

        ``max_in_flight`` requests are under way at a time. At most twice as many are taken from ``requests`` beyond
        those answered, which may come slowly, or wait for the answers. With ``return_errors`` a request that fails
        gives its RankingError in place of a ranking. Otherwise the first failure is raised.
        """
        if max_in_flight < 1:
            raise InvalidRequestError(f"max_in_flight must be at least 1, not {max_in_flight}")

        def rank(request: RankingRequest) -> list[RankedDocument] | RankingError:
            try:
                return self.rank(request.query, request.documents, top_k)
            except RankingError as error:
                if return_errors:
                    return error
                raise

        with closing(in_order(rank, requests, max_in_flight, 2 * max_in_flight)) as answers:
            for answer in answers:
                yield answer

    def _score(self, query: str, documents: Sequence[Document], timeout_s: float | None) -> Scores:
        deadline = Deadline.after(self.connection.timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return self._score_in_parts(query, documents, deadline)
            except _SmallerLimitError:  # once for each server at most, and mostly before anything was scored
                continue

    def _score_in_parts(self, query: str, documents: Sequence[Document], deadline: Deadline) -> Scores:
        parts = wire.parts(documents, self._limit)
        if len(parts) == 1:
            return self._infer(query, documents, deadline)

        def score_part(part: slice) -> Scores:
            try:
                return self._infer(query, documents[part], deadline)
            except RankingError as error:
                raise wire.of_part(error, part) from error

        return wire.joined([piece for piece in in_order(score_part, parts, PARTS_AT_ONCE)])

    def _infer(self, query: str, documents: Sequence[Document], deadline: Deadline) -> Scores:
        settings, inputs = self.connection, wire.inputs(query, documents)

        def infer(server: int) -> Scores:
            if len(documents) > self._limit_of(server, deadline):
                raise _SmallerLimitError
            result = self._clients[server].infer(
                settings.model,
                inputs,
                settings.version,
                client_timeout=max(deadline.left_s, 1e-4),
                headers=settings.headers,
            )
            return wire.scores(result, len(documents), settings.servers[server])

        return self._attempt(infer, len(documents), deadline)

    def _attempt(self, call: Callable[[int], T], documents: int, deadline: Deadline) -> T:
        """The answer of one server to ``call(server)``: at first of the one with the least load, then of others."""
        settings, tried = self.connection, set[int]()
        failure: RankingError = RequestTimeoutError(
            f"{', '.join(settings.servers)}: the time limit of {deadline.limit_s:.3g} s was over before this part was "
            "sent: raise it"
        )
        for attempt in range(settings.attempts):
            pause = pause_s(attempt) if len(tried) == len(settings.servers) else 0.0
            if pause >= deadline.left_s:
                break
            if pause:
                sleep(pause)
            server, status = self._balancer.take(documents, tried), ""
            try:
                return call(server)
            except InferenceServerException as error:
                status = status_of(error)
                tried.add(server)
                failure = translated(error, settings.servers[server], settings.model, deadline.limit_s)
                failure.__cause__ = error
                if status == AGAIN:
                    self._limits.pop(server, None)  # it may come back with another model
                elif status != NOT_FOUND or len(tried) == len(settings.servers):
                    break
            finally:
                self._balancer.give_back(server, documents, failed=status in FAILED)
        raise failure

    @property
    def _limit(self) -> int:
        """Documents that every server takes that was asked so far."""
        return self.connection.max_documents or min([*self._limits.values()], default=wire.NO_LIMIT)

    def _limit_of(self, server: int, deadline: Deadline) -> int:
        """Asked at the first request to the server."""
        if limit := self.connection.max_documents or self._limits.get(server):
            return limit
        settings = self.connection

        def config(model: str, version: str = "") -> dict[str, Any]:
            answer = self._clients[server].get_model_config(
                model, version, headers=settings.headers, as_json=True, client_timeout=max(deadline.left_s, 1e-4)
            )
            found: dict[str, Any] = answer["config"]
            return found

        ensemble = config(settings.model, settings.version)
        wire.check_ranker(ensemble, settings.model, settings.servers[server])
        self._limits[server] = wire.limit([config(step) for step in wire.steps(ensemble)])
        return self._limits[server]

    def _serves(self, server: int) -> bool:
        settings = self.connection
        with suppress(InferenceServerException):
            ready: bool = self._clients[server].is_model_ready(
                settings.model, settings.version, headers=settings.headers, client_timeout=settings.timeout_s
            )
            return ready
        return False

    @property
    def _clients(self) -> list[grpc.InferenceServerClient]:
        """Opened at the first call: a channel of asyncio belongs to the event loop that runs then."""
        with self._lock:
            if self._closed:
                raise InvalidRequestError("this client was closed")
            if not self._opened:
                channel = self.connection.channel()
                self._opened = [grpc.InferenceServerClient(server, **channel) for server in self.connection.servers]
            return self._opened
