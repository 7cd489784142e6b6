"""The library against real servers: both clients, requests above the limit, attempts, balancing, TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from client import (
    AsyncRankingClient,
    AuthenticationError,
    Connection,
    Document,
    InvalidRequestError,
    ModelNotReadyError,
    RankedDocument,
    RankingClient,
    RankingError,
    RankingRequest,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
    errors,
)
from client.attempts import Balancer
from client.connection import parse_target
from client.records import sigmoid
from client.wire import parts
from tests.support.odd_servers import OddServer, odd_server
from tests.support.servers import Server, ports, starting

QUERY = "garden bridge"
DOCUMENTS = [Document(f"d{number}", f"river {number}", "winter market " * number) for number in range(7)]
REQUESTS = [RankingRequest(query, DOCUMENTS[:count]) for query, count in (("river", 3), ("winter", 7), ("market", 1))]


def test_both_clients_answer_alike(server: Server) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncRankingClient(server.url) as client:
            return (
                await client.rank(QUERY, DOCUMENTS, 3),
                await client.score(QUERY, DOCUMENTS),
                await client.document_limit(),
                await client.is_ready(),
                [found async for found in client.rank_many(REQUESTS)],
            )

    with RankingClient(server.url) as client:
        expected = (
            client.rank(QUERY, DOCUMENTS, 3),
            client.score(QUERY, DOCUMENTS),
            client.document_limit(),
            client.is_ready(),
            list(client.rank_many(REQUESTS)),
        )
    assert asyncio.run(ask()) == expected
    assert expected[2:4] == (1000, True)
    best = expected[0][0]
    assert best.probability == pytest.approx(1 / (1 + np.exp(-best.score)))
    assert best.score == max(expected[1])


@pytest.mark.parametrize(("limit", "sizes"), [(3, [2, 2, 3]), (7, [7]), (1, [1] * 7), (4, [3, 4])])
def test_more_documents_than_the_limit_are_split_and_merged(server: Server, limit: int, sizes: list[int]) -> None:
    assert [part.stop - part.start for part in parts(DOCUMENTS, limit)] == sizes

    async def ask() -> list[RankedDocument]:
        async with AsyncRankingClient(server.url, max_documents=limit) as client:
            return await client.rank(QUERY, DOCUMENTS)

    with RankingClient(server.url) as whole, RankingClient(server.url, max_documents=limit) as split:
        expected = whole.rank(QUERY, DOCUMENTS)
        for found in (split.rank(QUERY, DOCUMENTS), asyncio.run(ask())):
            assert [one.index for one in found] == [one.index for one in expected]
            assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_an_error_of_a_part_says_which(server: Server) -> None:
    documents = [*["river"] * 5, "x" * 1_000_001]
    with (
        RankingClient(server.url, max_documents=3) as client,
        pytest.raises(InvalidRequestError, match=r"of documents 3 to 5, counted from 0 here: .* document 2 has"),
    ):
        client.rank(QUERY, documents)


def test_many_requests_keep_their_order_and_one_that_fails_does_not_fail_the_others(server: Server) -> None:
    requests = [REQUESTS[number % 3] for number in range(40)]
    requests[5] = RankingRequest(" ", ["river"])

    async def ask() -> list[Any]:
        async with AsyncRankingClient(server.url) as client:
            return [found async for found in client.rank_many(iter(requests), 2, return_errors=True)]

    with RankingClient(server.url) as client:
        found = list(client.rank_many(iter(requests), 2, max_in_flight=4, return_errors=True))
        for number, (one, other) in enumerate(zip(found, asyncio.run(ask()), strict=True)):
            if number == 5:
                assert isinstance(one, InvalidRequestError) and isinstance(other, InvalidRequestError)
                continue
            assert one == other == client.rank(requests[number].query, requests[number].documents, 2)
        stream = client.rank_many(requests)
        with pytest.raises(InvalidRequestError, match="the query is empty"):
            list(stream)


def test_requests_are_taken_as_they_are_needed(server: Server) -> None:
    taken = []

    def endless() -> Iterator[RankingRequest]:
        while True:
            taken.append(1)
            yield REQUESTS[0]

    with RankingClient(server.url) as client:
        stream = client.rank_many(endless(), max_in_flight=2)
        for _ in range(10):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert len(taken) <= 10 + 2 * 2


def test_one_client_serves_several_threads(server: Server) -> None:
    with RankingClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        expected = [client.score(request.query, request.documents) for request in REQUESTS]
        futures = [pool.submit(client.score, one.query, one.documents) for one in REQUESTS * 20]
        for number, future in enumerate(futures):
            assert future.result() == pytest.approx(expected[number % 3], abs=1e-5)


def test_a_server_that_is_gone_is_passed_over(server: Server) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    with RankingClient([nowhere, server.url]) as client:
        assert client.is_ready()
        for _ in range(3):
            client.score(QUERY, DOCUMENTS)
    with RankingClient(nowhere, attempts=2) as client:
        with pytest.raises(ServerUnavailableError, match=f"no server answers at {nowhere}") as caught:
            client.score(QUERY, DOCUMENTS)
        assert caught.value.server == nowhere
        assert not client.is_ready()


def test_a_server_that_comes_back_is_found_again(served_repository: Path, tmp_path: Path) -> None:
    at = ports()
    with (
        RankingClient(f"127.0.0.1:{at['grpc']}", attempts=200, timeout_s=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.score, QUERY, DOCUMENTS)
        with starting(served_repository, tmp_path / "log", at=at):
            assert len(waiting.result()) == len(DOCUMENTS)
        with pytest.raises(ServerError):
            client.score(QUERY, DOCUMENTS, timeout_s=0.5)


class Service(OddServer):
    """Scores all with 0, once ``act`` has seen the call; ``requests`` are those that came."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__(np.zeros)
        self.act, self.requests = act, list[Any]()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.act(context)
        return super().ModelInfer(request, context)


def refusing(code: grpc.StatusCode, message: str, times: int = 10**6) -> Callable[[Any], None]:
    left = [times]

    def reply(context: Any) -> None:
        if left[0]:
            left[0] -= 1
            context.abort(code, message)

    return reply


def test_only_unavailable_is_tried_again() -> None:
    full = "8 rows wait for the engine and this request has 2"
    cases = [
        (grpc.StatusCode.UNAVAILABLE, full, ServerOverloadedError, 3),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ServerUnavailableError, 3),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", RequestTimeoutError, 1),
        (grpc.StatusCode.INTERNAL, "broken", ServerError, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, "the query is empty", InvalidRequestError, 1),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you", AuthenticationError, 1),
    ]
    for code, message, kind, attempts in cases:
        service = Service(refusing(code, message))
        with (
            odd_server(service) as url,
            RankingClient(url, attempts=3, max_documents=10) as client,
            pytest.raises(kind, match=url),
        ):
            client.score(QUERY, DOCUMENTS)
        assert len(service.requests) == attempts, code

    service = Service(refusing(grpc.StatusCode.UNAVAILABLE, full, times=2))
    with odd_server(service) as url, RankingClient(url, max_documents=10) as client:
        assert client.score(QUERY, DOCUMENTS) == [0.0] * 7


def test_what_one_server_refuses_another_gets_at_once() -> None:
    full = Service(refusing(grpc.StatusCode.UNAVAILABLE, "4 rows wait for the engine"))
    idle = Service(lambda context: None)
    with (
        odd_server(full) as first,
        odd_server(idle) as second,
        RankingClient([first, second], max_documents=10) as client,
    ):
        for _ in range(10):
            client.score(QUERY, DOCUMENTS)
    assert len(full.requests) == 1  # it stands aside after that
    assert len(idle.requests) == 10


def test_a_server_that_has_not_the_model_sends_a_call_elsewhere_once() -> None:
    without = Service(refusing(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'ranker' is not found"))
    having = Service(lambda context: None)
    with odd_server(without) as first, odd_server(having) as second:
        with RankingClient([first, second], max_documents=10) as client:
            assert client.score(QUERY, ["river"]) == [0.0]
        with (
            RankingClient(first, max_documents=10) as client,
            pytest.raises(ModelNotReadyError, match=f"{first} does not serve the model 'ranker'"),
        ):
            client.score(QUERY, ["river"])
    assert len(without.requests) == 2 and len(having.requests) == 1


def test_every_call_carries_the_authorisation() -> None:
    def check(context: Any) -> None:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer secret":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    with odd_server(Service(check)) as url:
        with RankingClient(url, authorization="Bearer secret", max_documents=10) as client:
            assert client.score(QUERY, ["river"]) == [0.0]
        with RankingClient(url, max_documents=10) as client, pytest.raises(AuthenticationError, match="authorization"):
            client.score(QUERY, ["river"])


def test_a_connection_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])

    async def ask(url: str) -> list[float]:
        async with AsyncRankingClient(url, root_certificates=tmp_path / "root.pem", max_documents=10) as client:
            return await client.score(QUERY, ["river"])

    with odd_server(Service(lambda context: None), credentials) as url:
        with RankingClient(url, root_certificates=tmp_path / "root.pem", max_documents=10) as client:
            assert client.score(QUERY, ["river"]) == asyncio.run(ask(url)) == [0.0]
        for tls in (True, False):  # the system does not know this authority; nothing speaks plainly here
            with (
                RankingClient(url, max_documents=10, attempts=1, tls=tls) as client,
                pytest.raises(ServerUnavailableError, match="no server answers"),
            ):
                client.score(QUERY, ["river"])


def test_a_time_limit_is_that_of_the_whole_call() -> None:
    gone = threading.Event()

    def hold(context: Any) -> None:
        context.add_callback(gone.set)
        gone.wait(20)

    service = Service(hold)
    with odd_server(service) as url, RankingClient(url, max_documents=2) as client:
        with pytest.raises(RequestTimeoutError, match=f"{url} gave no answer within 0.3 s"):
            client.score(QUERY, DOCUMENTS[:2], timeout_s=0.3)
        assert gone.wait(20)  # the server is told
    full = Service(refusing(grpc.StatusCode.UNAVAILABLE, "4 rows wait for the engine"))
    with (
        odd_server(full) as url,
        RankingClient(url, timeout_s=0.5, attempts=1000, max_documents=10) as client,
        pytest.raises(ServerOverloadedError),  # what it said says more than that time was over
    ):
        client.score(QUERY, DOCUMENTS)


def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    entered, gone = threading.Event(), threading.Event()

    def hold(context: Any) -> None:
        context.add_callback(gone.set)
        entered.set()
        gone.wait(20)

    async def ask(url: str) -> None:
        async with AsyncRankingClient(url, max_documents=10) as client:
            task = asyncio.create_task(client.score(QUERY, ["river"]))
            await asyncio.to_thread(entered.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(gone.wait, 20)

    with odd_server(Service(hold)) as url:
        asyncio.run(ask(url))


def test_the_least_loaded_server_is_taken() -> None:
    balancer = Balancer(3)
    assert [balancer.take(10, set()) for _ in range(3)] == [0, 1, 2]
    balancer.give_back(1, 10, failed=False)
    assert balancer.take(1, set()) == 1
    assert balancer.take(1, set()) == 1  # 1 under way is less than 10
    assert balancer.take(1, {1}) in (0, 2)
    balancer.give_back(1, 1, failed=True)
    assert balancer.take(1, set()) in (0, 2)


def test_targets() -> None:
    default = Connection(("a:1",), "ranker")
    assert parse_target("teacher_ranker@b:2", default) == Connection(("b:2",), "teacher_ranker")
    assert parse_target("teacher_ranker", default) == Connection(("a:1",), "teacher_ranker")
    assert parse_target("@b:2, c:3", default) == Connection(("b:2", "c:3"), "ranker")
    for text in ("", "@", "ranker@"):
        with pytest.raises(InvalidRequestError, match="a target is model@host:port"):
            parse_target(text, default)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": ()}, "name at least one"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"root_certificates": Path("/nowhere.pem")}, "/nowhere.pem: no such file"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Connection(**settings)


def test_every_error_is_a_ranking_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ours = [kind for kind in kinds if kind.__module__ == errors.__name__]
    assert len(ours) == 9
    assert all(issubclass(kind, RankingError) for kind in ours)


def test_a_probability_neither_overflows_nor_leaves_its_range() -> None:
    assert [sigmoid(logit) for logit in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
