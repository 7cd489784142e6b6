"""For any number of threads. Made of client/asynchronous.py by client/unasync.py: edit that one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from client import wire
from client.attempts import Deadline
from client.balancer import Health
from client.concurrency import in_order
from client.connection import Connection
from client.errors import InvalidRequestError, RankingError
from client.fleet import Fleet, SmallerLimitError
from client.records import AT_END, Document, DocumentLike, RankedDocument, RankingRequest, Scores, Truncation, ranked

if TYPE_CHECKING:
    from typing import Self

PARTS_AT_ONCE = 4


class RankingClient:
    """Connections to one or several servers. Every call may raise a RankingError.

    ``settings`` are further fields of Connection. A call whose ``timeout_s`` is None has the client's. A pickled client
    is its settings, the authorization among them; it opens connections of its own.
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
        self._fleet = Fleet(self.connection)

    @classmethod
    def of(cls, connection: Connection) -> Self:
        return cls(**vars(connection))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.connection,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Requests under way end with an error."""
        self._fleet.close()

    def is_ready(self) -> bool:
        """Whether at least one server answers and serves the model."""
        return self._fleet.is_ready()

    def document_limit(self) -> int:
        """Documents that every server takes in a request, of those that answer. More are split and merged."""
        return self._fleet.document_limit()

    def health(self) -> list[Health]:
        """The state of each server, as the calls so far have shown it."""
        return self._fleet.balancer.health()

    @property
    def second_requests(self) -> int:
        """Retries and hedges so far, of all calls."""
        return self._fleet.budget.spent

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
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        timeout_s: float | None = None,
        truncation: Truncation = AT_END,
    ) -> Scores:
        """Logits, and what was cut, in the caller's order."""
        return self._score(query, wire.checked(query, documents), timeout_s, truncation)

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

        An iterable is read in a thread, which after the end may still wait for one more request, and takes it. In place
        of ``sys.stdin`` give ``open(0, "rb", closefd=False)``: the interpreter aborts at its exit if a thread still
        reads the former.
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

    def _score(
        self, query: str, documents: Sequence[Document], timeout_s: float | None, truncation: Truncation = AT_END
    ) -> Scores:
        self._fleet.throttle.check()  # once for all parts of a list: those that were scored are not lost
        deadline = Deadline.after(self.connection.timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return self._score_in_parts(query, documents, deadline, truncation)
            except SmallerLimitError:  # once for each server at most, and mostly before anything was scored
                continue

    def _score_in_parts(
        self, query: str, documents: Sequence[Document], deadline: Deadline, truncation: Truncation
    ) -> Scores:
        parts = wire.parts(documents, self._fleet.limit)
        if len(parts) == 1:
            return self._fleet.score(query, documents, deadline, truncation)

        def score_part(part: slice) -> Scores:
            try:
                return self._fleet.score(query, documents[part], deadline, truncation)
            except RankingError as error:
                raise wire.of_part(error, part) from error

        return wire.joined([piece for piece in in_order(score_part, parts, PARTS_AT_ONCE)])
