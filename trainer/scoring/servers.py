"""Scores of query groups by a teacher behind running Triton servers, through the client library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import tritonclient.grpc as grpc
from tqdm import tqdm

from client import (
    Connection,
    InvalidRequestError,
    RankingClient,
    RankingError,
    RequestTimeoutError,
    ServerUnavailableError,
    wire,
)
from client.connection import BATCH
from client.errors import DisRankerError, Fault, translated
from client.patience import patiently
from trainer.data.records import QueryGroup
from trainer.scoring.checkpoint import named_scores

T = TypeVar("T")

ANSWER_S = 10.0  # for a server to report what it serves
PASSING: tuple[Fault, ...] = ("overloaded", "broken")  # of a server that has much to do, stops, starts or is replaced
FIRST_OF_PART, NAMED_DOCUMENT = re.compile(r"of documents (\d+) to "), re.compile(r"\b(?:document |\w+\[)(\d+)")


class TeacherError(DisRankerError):
    """Servers that have no teacher, or teachers that differ, or another one than they had before."""


class Teacher(NamedTuple):
    """The model that a server scores with."""

    name: str  # for people
    identity: str  # decides the scores


class TritonScorer:
    """The same teacher on one or several servers, which get at most ``in_flight`` queries each at a time.

    The client balances them, tries again and splits queries above a server's limit. A query may take ``timeout_s``,
    a restart of its server included. One that is refused for itself, and would be again, is given to ``refused``, which
    raises its error by default. Raises RankingError for a server that does not answer, TeacherError for servers of
    different teachers.
    """

    def __init__(self, urls: Sequence[str], model: str, in_flight: int, timeout_s: float) -> None:
        self._connection = Connection(tuple(urls), model, timeout_s=timeout_s, priority=BATCH)
        self._at_once = in_flight * len(urls)
        self.name, self.identity = teacher_of(self._connection, urls[0])
        for url in urls[1:]:
            self._require_same(url, teacher_of(self._connection, url))
        self._client = RankingClient.of(self._connection)
        self.refused: Callable[[QueryGroup, InvalidRequestError], None] = _raise

    def close(self) -> None:
        self._client.close()

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, float32 logit)`` of every pair that is not refused, in the order of the groups.

        Raises RankingError, which names the query, for one that no server answers in time, whatever ``refused`` raises,
        and TeacherError where a server has another teacher when all are scored.
        """
        pool = ThreadPoolExecutor(self._at_once)
        try:
            for group, answer in zip(groups, pool.map(self._score, groups), strict=True):
                if isinstance(answer, InvalidRequestError):
                    self.refused(group, answer)
                else:
                    ids = [(group.query_id, document.doc_id) for document in group.documents]
                    yield from named_scores(self.name, ids, answer)
                bar.update(len(group.documents))
        except BaseException:
            self.close()  # or the pool's end waits for the requests under way
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        for url in self._connection.servers:
            self._require_same(url, self._patiently(partial(self._teacher_of, url)))

    def _score(self, group: QueryGroup) -> list[float] | InvalidRequestError:
        documents = [{"title": document.title, "summary": document.summary} for document in group.documents]
        try:
            return self._patiently(lambda left_s: self._client.score(group.query, documents, timeout_s=left_s))
        except RankingError as error:
            named = error.reworded(f"query {group.query_id!r}{_named(error, group)}: {error}")
            if isinstance(named, InvalidRequestError):
                return named
            raise named from error

    def _patiently(self, call: Callable[[float], T]) -> T:
        return patiently(call, self._connection.timeout_s, PASSING)

    def _teacher_of(self, url: str, left_s: float) -> Teacher:
        return teacher_of(self._connection, url, min(left_s, ANSWER_S))

    def _require_same(self, url: str, teacher: Teacher) -> None:
        if teacher.identity != self.identity:
            raise TeacherError(
                f"{url} has another teacher: {teacher.name} ({teacher.identity}) instead of {self.name} "
                f"({self.identity}): give it that one, or remove the shards to start from the beginning"
            )


def teacher_of(connection: Connection, url: str, answer_s: float = ANSWER_S) -> Teacher:
    """The teacher that the ensemble ``connection.model`` of a server scores with.

    Raises RankingError for a server that does not answer or does not serve it, TeacherError for another ensemble.
    """
    with closing(grpc.InferenceServerClient(**connection.channel(url))) as client:

        def config_of(model: str) -> dict[str, Any]:
            config: dict[str, Any] = client.get_model_config(model, as_json=True, client_timeout=answer_s)["config"]
            return config

        try:
            ensemble = config_of(connection.model)
            wire.check_ranker(ensemble, connection.model, url)
            configs = [config_of(step) for step in wire.steps(ensemble)]
            scorers = [config for config in configs if wire.LIMIT in config.get("parameters", {})]
            if len(scorers) != 1:
                raise TeacherError(f"{url}: {connection.model!r} is no ensemble of ours: --triton_model names one")
            name = scorers[0]["name"]
            versions = client.get_model_metadata(name, as_json=True, client_timeout=answer_s)["versions"]
        except grpc.InferenceServerException as error:
            raise translated(error, url, connection.model, answer_s) from error
    newest = max(map(int, versions))
    built = scorers[0].get("parameters", {}).get(f"version.{newest}", {}).get("string_value")
    called = f"{name} version {newest}"
    return Teacher(called, built or f"{called} at {url}")


def _raise(_: QueryGroup, error: InvalidRequestError) -> None:
    raise error


def _named(error: RankingError, group: QueryGroup) -> str:
    """The id of the document that a server refused; it counts those of a request, or of a part of one."""
    if isinstance(error, InvalidRequestError) and (named := NAMED_DOCUMENT.search(str(error))):
        part = FIRST_OF_PART.search(str(error))
        return f", document {group.documents[int(named[1]) + int(part[1] if part else 0)].doc_id!r}"
    if isinstance(error, RequestTimeoutError | ServerUnavailableError):
        return ", which the same command resumes with"
    return ""
