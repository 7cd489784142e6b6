"""Scores of query groups from teachers behind running Triton servers, with requests always on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import NoReturn

from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import FloatArray
from trainer.data.records import QueryGroup
from trainer.scoring.checkpoint import named_scores
from trainer.scoring.server import Request, ServerError, TritonServer

FINISHED = 8  # answers kept, for each request on its way, while an earlier one is waited for


class TritonScorer:
    """The same teacher on one or several servers, each with at most ``in_flight`` requests at a time.

    A server gets its next request when it answers one, so that a faster one gets more of them. Raises ServerError
    for servers of different teachers.
    """

    def __init__(self, urls: Sequence[str], model: str, in_flight: int, timeout_s: float) -> None:
        self._servers: list[TritonServer] = []
        self._free: SimpleQueue[TritonServer] = SimpleQueue()  # each as often as it may be asked
        self._most = FINISHED * in_flight * len(urls)
        try:
            for url in urls:
                self._servers.append(TritonServer(url, model, timeout_s))
            refuse_different(urls, self._servers)
        except ServerError:
            self.close()
            raise
        for server in self._servers * in_flight:
            self._free.put(server)
        first = self._servers[0].teacher
        self.name, self.identity = first.name, first.identity
        self._documents = min(server.teacher.documents_per_request for server in self._servers)

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, float32 logit)`` of every pair, in the order of the groups.

        Raises DataError for a group that the teacher refuses and for a score that is no number, ServerError for a
        server that is gone and, when all are scored, for one that has another teacher by then.
        """
        sent: deque[tuple[list[tuple[str, str]], Future[FloatArray]]] = deque()
        for request in self._requests(groups):
            ids = [(request.query_id, document.doc_id) for document in request.documents]
            sent.append((ids, self._send(request)))
            while sent and (sent[0][1].done() or len(sent) > self._most):
                yield from self._answered(*sent.popleft(), bar)
        while sent:
            yield from self._answered(*sent.popleft(), bar)
        for server in self._servers:
            server.check_unchanged()

    def _requests(self, groups: Sequence[QueryGroup]) -> Iterator[Request]:
        for group in groups:
            for start in range(0, len(group.documents), self._documents):
                yield Request(group.query_id, group.query, group.documents[start : start + self._documents])

    def _send(self, request: Request) -> Future[FloatArray]:
        server = self._free.get()
        return server.send(request, done=partial(self._free.put, server))

    def _answered(
        self, ids: list[tuple[str, str]], answer: Future[FloatArray], bar: tqdm[NoReturn]
    ) -> Iterator[tuple[str, str, float]]:
        scores = answer.result().tolist()
        if len(scores) != len(ids):
            raise ServerError(f"query {ids[0][0]!r}: {len(scores)} scores of {len(ids)} documents came back")
        yield from named_scores(self.name, ids, scores)
        bar.update(len(ids))


def refuse_different(urls: Sequence[str], servers: Sequence[TritonServer]) -> None:
    """Raises ServerError, which names two that differ."""
    first = servers[0].teacher
    for url, server in zip(urls, servers, strict=True):
        if server.teacher.identity != first.identity:
            raise ServerError(
                f"the teachers differ: {urls[0]} has {first.name} ({first.identity}), "
                f"{url} has {server.teacher.name} ({server.teacher.identity})"
            )
