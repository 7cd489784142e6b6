"""Servers that break, hang, have too much to do and come back, behind one client; for both faces."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from client import RankingClient, RankingError, RequestTimeoutError, ServerError, ServerOverloadedError, attempts
from client.attempts import FIRST_RETRIES, RETRY_SHARE
from client.latencies import ENOUGH
from tests.support.clients import DOCUMENTS, QUERY, SCORES_ABS, Blocking
from tests.support.odd_servers import Act, Held, OddServer, odd_server, refusing
from tests.support.servers import Server, descendants, starting, wait_until_ready
from tests.support.waiting import PATIENCE_S, eventually

UNAVAILABLE, INTERNAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL
STUB = "Stub process 'student_0_0' is not healthy."
CALLS = 20
MANY = 150


def idle(context: Any) -> None:
    """For an OddServer's ``act``: nothing but the answer."""


@contextmanager
def two(face: Any, first: OddServer, second: OddServer, **settings: Any) -> Iterator[Any]:
    """A client of both servers."""
    settings.setdefault("max_documents", 10)
    with odd_server(first) as one, odd_server(second) as other, face([one, other], **settings) as client:
        yield client


def asked(service: OddServer) -> int:
    """How often the server got a call's documents, not a probe's."""
    return service.sizes.count(len(DOCUMENTS))


def score(client: Any, calls: int = 1) -> list[RankingError | None]:
    failures: list[RankingError | None] = []
    for _ in range(calls):
        try:
            assert client.score(QUERY, DOCUMENTS) == [0.0] * len(DOCUMENTS)
            failures.append(None)
        except RankingError as error:
            failures.append(error)
    return failures


@pytest.mark.parametrize(
    "act",
    [
        refusing(INTERNAL, STUB),
        refusing(UNAVAILABLE, "Socket closed"),
        refusing(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'ranker' is not found"),
        refusing(UNAVAILABLE, "model 'ranker' is not ready for inference"),
        refusing(grpc.StatusCode.UNKNOWN, "Exception calling application"),
    ],
)
def test_a_broken_server_gets_probes_only_until_it_is_well_again(face: Any, act: Act) -> None:
    broken, well = OddServer(act=act), OddServer()
    with two(face, broken, well) as client:
        assert score(client, CALLS) == [None] * CALLS
        assert (asked(broken), asked(well)) == (1, CALLS)
        assert [server.aside for server in client.health()] == [True, False]
        eventually(lambda: score(client) == [None] and broken.sizes.count(1))  # a probe
        assert asked(broken) == 1
        broken.act = idle
        eventually(lambda: score(client) == [None] and asked(broken) > 1)
        assert not any(server.aside or server.load for server in client.health())


def test_a_server_that_was_broken_is_ready_only_if_it_scores(face: Any) -> None:
    """Whatever Triton says of a model whose process is dead."""
    service = OddServer()
    with odd_server(service) as url, face(url, max_documents=10) as client:
        assert client.is_ready()
        service.act = refusing(INTERNAL, STUB)
        assert score(client) != [None]
        assert not client.is_ready()
        service.act = idle
        assert client.is_ready()
        assert not client.health()[0].aside


def test_a_server_that_hangs_costs_one_call_its_time(face: Any) -> None:
    over, well = threading.Event(), OddServer()

    def hang(context: Any) -> None:
        over.wait(PATIENCE_S)

    hangs = OddServer(act=hang)
    with two(face, hangs, well) as client:
        with pytest.raises(RequestTimeoutError):
            client.score(QUERY, DOCUMENTS, timeout_s=0.5)
        assert score(client, CALLS) == [None] * CALLS
        assert asked(hangs) <= 1 and asked(well) == CALLS
        over.set()
        eventually(lambda: score(client) == [None] and asked(hangs) > 1)


def test_a_limit_that_is_mostly_too_short_is_no_fault_of_the_server(face: Any) -> None:
    services = [OddServer(), OddServer()]
    with two(face, *services) as client:
        services[0].act = services[1].act = late(idle, 0.05)
        warmed(client)
        for _ in range(4):
            with pytest.raises(RequestTimeoutError):
                client.score(QUERY, DOCUMENTS, timeout_s=0.01)
        assert not any(server.aside for server in client.health())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "the query is empty"),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you"),
        (UNAVAILABLE, "the request is past its deadline"),
    ],
)
def test_what_is_no_fault_of_the_server_is_not_asked_elsewhere(face: Any, code: grpc.StatusCode, message: str) -> None:
    services = [OddServer(act=refusing(code, message)) for _ in range(2)]
    with two(face, *services) as client:
        assert all(score(client, 4))
    assert sum(map(asked, services)) == 4


def test_a_request_that_breaks_servers_breaks_no_more_than_two(face: Any) -> None:
    services = [OddServer(act=refusing(INTERNAL, STUB)) for _ in range(3)]
    with ExitStack() as running:
        urls = [running.enter_context(odd_server(service)) for service in services]
        with face(urls, max_documents=10) as client:
            assert type(score(client)[0]) is ServerError
    assert sum(map(asked, services)) == 2


def test_an_overloaded_server_stands_aside_as_long_as_it_asks_for(face: Any) -> None:
    full, other = OddServer(act=refusing(UNAVAILABLE, "full, retry in 600 s", times=1)), OddServer()
    with two(face, full, other) as client:
        assert score(client, CALLS) == [None] * CALLS
        assert (asked(full), full.sizes.count(1)) == (1, 0)
        full.act = refusing(UNAVAILABLE, "full, retry in 0.25 s", times=1)
        other.act = refusing(UNAVAILABLE, "full, retry in 3.5 s", times=1)
        (failure,) = score(client)
        assert isinstance(failure, ServerOverloadedError)
        assert failure.retry_after_s == 0.25
        assert (asked(full), asked(other)) == (2, CALLS + 1)  # each once
        full.act = other.act = idle
        assert score(client, 3) == [None] * 3  # both are aside: one is asked nevertheless
    brief = OddServer(act=refusing(UNAVAILABLE, "full, retry in 0.01 s", times=1))
    with two(face, brief, OddServer()) as client:
        eventually(lambda: score(client) == [None] and asked(brief) > 1)
        assert brief.sizes.count(1) == 0  # without a probe


@pytest.mark.parametrize("message", ["full, retry in 0.001 s", "Socket closed"])
def test_no_storm_of_retries_forms(face: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several clients, all of whose servers are in trouble."""
    monkeypatch.setattr(attempts, "REMEMBERED_S", 60.0)  # however slow the machine is
    services, clients = [OddServer(act=refusing(UNAVAILABLE, message)) for _ in range(2)], 4
    with odd_server(services[0]) as one, odd_server(services[1]) as other, ThreadPoolExecutor(clients) as pool:

        def ask() -> tuple[int, int]:
            with face([one, other], max_documents=10, attempts=2) as client:
                failures = score(client, MANY)
                assert all(failures)
                assert client.second_requests >= FIRST_RETRIES
                return client.second_requests, sum("not sent" in str(failure) for failure in failures)

        counts = [future.result() for future in [pool.submit(ask) for _ in range(clients)]]
    second, unsent = map(sum, zip(*counts, strict=True))
    assert sum(map(asked, services)) == clients * MANY - unsent + second
    assert bool(unsent) == message.startswith("full")
    assert second <= clients * (FIRST_RETRIES + RETRY_SHARE * MANY)


def test_the_server_is_told_how_long_the_caller_waits_and_who_waits(face: Any) -> None:
    service = OddServer(act=refusing(UNAVAILABLE, "Socket closed", times=2))
    with odd_server(service) as url:
        with face(url, max_documents=10, timeout_s=60) as client:
            assert score(client) == [None]
        first, second, third = service.parameters
        assert 60e6 > first["timeout"] > second["timeout"] > third["timeout"] > 0
        assert first["priority"] == 1
        with face(url, priority=2) as client:
            client.score(QUERY, DOCUMENTS, timeout_s=1e9)
            assert service.parameters[-1]["priority"] == 2
            assert 0.99e15 < service.parameters[-1]["timeout"] <= 1e15


def warmed(client: Any) -> None:
    assert score(client, ENOUGH) == [None] * ENOUGH


def test_a_late_answer_is_asked_for_elsewhere_and_the_late_request_cancelled(face: Any) -> None:
    held, slow, well = Held(), OddServer(), OddServer()
    with two(face, slow, well, hedge=0.95, timeout_s=120) as client:
        warmed(client)
        assert asked(slow) and asked(well)
        slow.act = held
        before = client.second_requests
        eventually(lambda: score(client) == [None] and held.held.is_set())
        assert held.gone.wait(PATIENCE_S)
        assert client.second_requests > before
        assert all(server.load == 0 for server in client.health())


def late(then: Act, seconds: float) -> Act:
    def act(context: Any) -> None:
        time.sleep(seconds)
        then(context)

    return act


@pytest.mark.parametrize("first", [idle, refusing(INTERNAL, STUB)])
@pytest.mark.parametrize("second", [idle, refusing(INTERNAL, STUB)])
def test_of_two_requests_one_may_fail(face: Any, first: Act, second: Act) -> None:
    services = [OddServer(), OddServer()]
    with two(face, *services, hedge=0.5) as client:
        warmed(client)
        services[0].act, services[1].act = late(first, 0.3), late(second, 0.3)
        expected = type(None) if idle in (first, second) else ServerError
        assert type(score(client)[0]) is expected
        assert all(server.load == 0 for server in client.health())


def test_second_requests_are_few_however_late_all_are(face: Any) -> None:
    services, calls = [OddServer(), OddServer()], 60
    with two(face, *services, hedge=0.01) as client:
        warmed(client)
        services[0].act = services[1].act = late(idle, 0.03)
        assert score(client, calls) == [None] * calls
        assert 5 < client.second_requests <= FIRST_RETRIES + RETRY_SHARE * (ENOUGH + calls)


def test_a_server_whose_student_was_killed(server: Server, served_repository: Path, tmp_path: Path) -> None:
    with starting(served_repository, tmp_path / "log") as fragile:
        wait_until_ready(fragile)
        urls = [fragile.url, server.url]
        with RankingClient(urls) as threads, Blocking(urls) as asyncio:
            for client in (threads, asyncio):
                client.document_limit()  # asks both
            expected = client.score(QUERY, DOCUMENTS)
            family = descendants(fragile.process.pid)
            (student,) = [one for one in family if "/student/" in " ".join(one.cmdline())]
            student.kill()
            for client in (threads, asyncio):
                for _ in range(CALLS):
                    assert client.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=SCORES_ABS)
                assert not client.health()[1].aside
            assert threads.health()[0].faults["broken"]
        for one in family:  # a server that is not well stops slowly
            with suppress(psutil.NoSuchProcess):
                one.kill()
