"""What goes wrong between a client and a server, for both clients: a message for people, and a client that works on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from bench.stalling import StallingRelay
from client import (
    AsyncRankingClient,
    Connection,
    DocumentLike,
    InvalidAnswerError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingClient,
    RankingError,
    RequestTimeoutError,
    ServerUnavailableError,
)
from tests.support.odd_servers import CuttingProxy, OddServer, cutting_proxy, odd_server
from tests.support.servers import Server, ports

QUERY = "garden bridge"
DOCUMENTS = ["river", "market of silver", "winter " * 40, "copper"]
LARGE = ["winter garden " * 200, "river"]  # more than a packet's worth of headers


@dataclass(frozen=True)
class Call:
    """One call of a client, after ``before`` has been done."""

    documents: Sequence[DocumentLike]
    timeout_s: float | None = None
    before: Callable[[], Any] = lambda: None


Outcome = list[float] | RankingError


def in_threads(connection: Connection, calls: Sequence[Call]) -> Iterator[Outcome]:
    with RankingClient.of(connection) as client:
        for call in calls:
            call.before()
            try:
                yield client.score(QUERY, call.documents, timeout_s=call.timeout_s)
            except RankingError as error:
                yield error


def in_asyncio(connection: Connection, calls: Sequence[Call]) -> Iterator[Outcome]:
    async def ask() -> list[Outcome]:
        outcomes: list[Outcome] = []
        async with AsyncRankingClient.of(connection) as client:
            for call in calls:
                call.before()
                try:
                    outcomes.append(await client.score(QUERY, call.documents, timeout_s=call.timeout_s))
                except RankingError as error:
                    outcomes.append(error)
        return outcomes

    return iter(asyncio.run(ask()))


@pytest.fixture(params=[in_threads, in_asyncio])
def outcomes(request: pytest.FixtureRequest) -> Callable[[Connection, Sequence[Call]], Iterator[Outcome]]:
    """Of calls that one client makes, one after the other."""
    kind: Callable[[Connection, Sequence[Call]], Iterator[Outcome]] = request.param
    return kind


@pytest.fixture
def connection(server: Server) -> Connection:
    return Connection((server.url,))


@pytest.fixture
def expected(connection: Connection) -> list[float]:
    with RankingClient.of(connection) as client:
        return client.score(QUERY, DOCUMENTS)


@pytest.fixture
def proxy(server: Server) -> Iterator[CuttingProxy]:
    with cutting_proxy(server.url) as proxy:
        yield proxy


def check(outcome: Outcome, kind: type[RankingError], *words: str) -> None:
    """An error of this kind whose message holds all the words: the server, and what to do."""
    assert type(outcome) is kind, outcome
    for word in words:
        assert word in str(outcome)


def test_no_server(outcomes: Any) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    (outcome,) = outcomes(Connection((nowhere,), attempts=2), [Call(DOCUMENTS)])
    check(outcome, ServerUnavailableError, f"no server answers at {nowhere}", "start it, or name its gRPC port")
    assert outcome.server == nowhere


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "rerank"}, ("does not serve the model 'rerank'", "name another")),
        ({"version": "7"}, ("does not serve the model 'ranker'", "version")),
        ({"model": "scores"}, ("the model 'scores'", "is no ranker", "name an ensemble of ours, such as ranker")),
        ({"model": "ranker_tokens"}, ("is no ranker", "DOCUMENT_IDS")),
    ],
)
def test_what_the_server_does_not_serve(
    outcomes: Any, connection: Connection, changed: dict[str, Any], words: tuple[str, ...]
) -> None:
    for outcome in outcomes(replace(connection, **changed), [Call(DOCUMENTS)] * 2):
        check(outcome, ModelNotReadyError, connection.servers[0], *words)


def test_a_model_of_another_kind_where_nobody_asked_for_its_limit(outcomes: Any, connection: Connection) -> None:
    (outcome,) = outcomes(replace(connection, model="scores", max_documents=100), [Call(DOCUMENTS)])
    check(outcome, ModelNotReadyError, connection.servers[0], "does not serve the model 'scores' as a ranker")


def test_a_deadline_that_passes(outcomes: Any, connection: Connection, expected: list[float]) -> None:
    late, good = outcomes(connection, [Call(DOCUMENTS, timeout_s=1e-3), Call(DOCUMENTS)])
    check(late, RequestTimeoutError, connection.servers[0], "0.001 s", "raise")
    assert good == expected


def test_a_connection_that_is_cut_in_the_middle(outcomes: Any, proxy: CuttingProxy, connection: Connection) -> None:
    cut = Call(LARGE, before=lambda: setattr(proxy, "cuts", 1))
    (whole,) = in_threads(connection, [Call(LARGE)])
    through = Connection((proxy.url,), attempts=1)
    good, error, *after = outcomes(through, [Call(LARGE), cut, *[Call(LARGE)] * 3])
    check(error, ServerUnavailableError, proxy.url, "start it, or name its gRPC port")
    # gRPC may still put the next call on the connection that is closing.
    assert good == after[-1] == whole
    # With the attempts that there are by default nobody notices.
    assert [*outcomes(replace(through, attempts=4), [cut, Call(LARGE)])] == [whole, whole]
    assert proxy.cuts == 0


def test_a_connection_that_takes_its_time(outcomes: Any, connection: Connection, expected: list[float]) -> None:
    """As over a long way with TLS, or to a server that is busy."""
    with StallingRelay(connection.servers[0]) as relay:
        stall = threading.Thread(target=relay.stall, args=(1.5,))
        stall.start()
        (outcome,) = outcomes(Connection((relay.url,), attempts=1), [Call(DOCUMENTS)])
        assert outcome == expected
        stall.join()


def test_10_000_documents_are_scored_as_their_parts_are(outcomes: Any, connection: Connection) -> None:
    many = [f"river {number} market {number * 7}" for number in range(10_000)]
    parts = [Call(many[start : start + 1000]) for start in range(0, len(many), 1000)]
    whole, *pieces = outcomes(connection, [Call(many), *parts])
    assert len(whole) == 10_000
    assert whole == pytest.approx([score for piece in pieces for score in piece], abs=1e-5)


def test_5_mb_in_one_document(outcomes: Any, connection: Connection, expected: list[float]) -> None:
    error, good = outcomes(connection, [Call(["river", "x" * 5_000_000]), Call(DOCUMENTS)])
    check(error, InvalidRequestError, connection.servers[0], "document 1 has 5000000 bytes")
    assert good == expected


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda count: np.full(count, np.nan), ("document 0 with nan", "4 of 4 are not finite", "see its engine")),
        (lambda count: np.array([0.5, np.inf, 1, 2]), ("document 1 with inf", "1 of 4")),
        (lambda count: np.zeros(count - 1), ("answered 4 documents with SCORES of shape (3,)",)),
        (lambda count: np.zeros((count, 1)), ("SCORES of shape (4, 1)", "is the model a ranker?")),
    ],
)
def test_answers_that_cannot_rank(outcomes: Any, scores: Callable[[int], Any], words: tuple[str, ...]) -> None:
    service = OddServer(scores)
    with odd_server(service) as url:
        mended = Call(DOCUMENTS, before=lambda: setattr(service, "reply", np.arange))
        bad, good = outcomes(Connection((url,)), [Call(DOCUMENTS), mended])
    check(bad, InvalidAnswerError, url, *words)
    assert good == [0, 1, 2, 3]


def test_a_server_that_hangs(outcomes: Any) -> None:
    going_on = threading.Event()

    def hang(count: int) -> Any:
        going_on.wait()
        return np.arange(count)

    with odd_server(OddServer(hang)) as url:
        calls = [Call(DOCUMENTS, timeout_s=0.3), Call(DOCUMENTS, before=going_on.set)]
        late, good = outcomes(Connection((url,)), calls)
        going_on.set()
    check(late, RequestTimeoutError, f"{url} gave no answer within 0.3 s", "raise the time limit")
    assert good == [0, 1, 2, 3]
