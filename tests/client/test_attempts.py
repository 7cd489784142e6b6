"""Which server a call goes to, when it is tried again, and when its time is over; for both faces."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import (
    AuthenticationError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingClient,
    RankingError,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
    attempts,
)
from client.attempts import Attempts, Deadline, RetryBudget, Throttle
from client.balancer import Balancer
from tests.support.clients import DOCUMENTS, QUERY, SCORES_ABS
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.relay import Relay
from tests.support.servers import Server, ports
from tests.support.waiting import PATIENCE_S, eventually

LARGE = ["winter garden " * 200, "river"]  # more than a packet's worth of headers
STUB = "Stub process 'student_0_0' is not healthy."
FULL = "Exceeds maximum queue size"


def refusal(client: Any, kind: type[RankingError], documents: Any = DOCUMENTS, **settings: Any) -> RankingError:
    with pytest.raises(RankingError) as caught:
        client.score(QUERY, documents, **settings)
    assert type(caught.value) is kind, caught.value
    return caught.value


def test_a_server_that_is_gone_is_passed_over(face: Any, server: Server) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    with face([nowhere, server.url]) as client:
        assert client.is_ready()
        assert client.document_limit() == 1000
        for _ in range(3):
            client.score(QUERY, DOCUMENTS)
    with face(nowhere, attempts=2) as client:
        error = refusal(client, ServerUnavailableError)
        assert error.server == nowhere
        assert f"no server answers at {nowhere}: start it, or name its gRPC port" in str(error)
        assert not client.is_ready()


def test_a_server_that_comes_back_is_found_again(face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_RETRIES", 100.0)  # however long it takes to come back
    at = f"127.0.0.1:{ports()['grpc']}"
    with face(at, attempts=200, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.score, QUERY, DOCUMENTS)
        eventually(lambda: client.second_requests)
        with odd_server(OddServer(), at=at):
            assert waiting.result() == [0.0] * 4
        with pytest.raises(RankingError):
            client.score(QUERY, DOCUMENTS, timeout_s=0.5)


@pytest.mark.parametrize(
    ("code", "message", "kind", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, FULL, ServerOverloadedError, 1),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", ServerOverloadedError, 1),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ServerUnavailableError, 3),
        (grpc.StatusCode.UNAVAILABLE, "100 waiting, retry in 1e999 s", ServerOverloadedError, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", ServerOverloadedError, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (2 vs. 1)", InvalidRequestError, 1),
        (grpc.StatusCode.UNAVAILABLE, "the request is past its deadline", RequestTimeoutError, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", RequestTimeoutError, 1),
        (grpc.StatusCode.INTERNAL, STUB, ServerError, 1),
        (grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size", ServerError, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, "the query is empty", InvalidRequestError, 1),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you", AuthenticationError, 1),
    ],
)
def test_the_same_server_is_tried_again_only_after_a_cut(
    face: Any, code: grpc.StatusCode, message: str, kind: type[RankingError], attempts: int
) -> None:
    service = OddServer(act=refusing(code, message))
    with odd_server(service) as url, face(url, attempts=3, max_documents=10) as client:
        said = str(refusal(client, kind))
    assert url in said and ("docker run --shm-size" in said) == ("shared memory" in message)
    assert len(service.sizes) == attempts


def test_a_server_that_has_not_the_model_sends_a_call_elsewhere_once(face: Any) -> None:
    without = OddServer(act=refusing(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'ranker' is not found"))
    having = OddServer()
    with odd_server(without) as first, odd_server(having) as second:
        with face([first, second], max_documents=10) as client:
            assert client.score(QUERY, ["river"]) == [0.0]
        with face(first, max_documents=10) as client:
            error = refusal(client, ModelNotReadyError, ["river"])
            assert f"{first} does not serve the model 'ranker'" in str(error)
    assert len(without.sizes) == 2 and len(having.sizes) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "rerank"}, ("does not serve the model 'rerank'", "name another")),
        ({"version": "7"}, ("does not serve the model 'ranker'", "version")),
        ({"model": "scores"}, ("the model 'scores'", "is no ranker", "name an ensemble of ours, such as ranker")),
        ({"model": "scores", "max_documents": 100}, ("does not serve the model 'scores' as a ranker",)),
        ({"model": "ranker_tokens"}, ("is no ranker", "DOCUMENT_IDS")),
    ],
)
def test_what_the_server_does_not_serve(
    face: Any, server: Server, changed: dict[str, Any], words: tuple[str, ...]
) -> None:
    with face(server.url, **changed) as client:
        for _ in range(2):
            error = refusal(client, ModelNotReadyError)
            assert all(word in str(error) for word in (server.url, *words))


def test_every_call_carries_the_authorization(face: Any) -> None:
    def check(context: Any) -> None:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer secret":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    with odd_server(OddServer(act=check)) as url:
        with face(url, authorization="Bearer secret", max_documents=10) as client:
            assert client.score(QUERY, ["river"]) == [0.0]
        with face(url, max_documents=10) as client:
            assert "authorization" in str(refusal(client, AuthenticationError))


def test_a_time_limit_is_that_of_the_whole_call(face: Any, server: Server) -> None:
    with face(server.url) as client:
        assert "0.001 s" in str(refusal(client, RequestTimeoutError, timeout_s=1e-3))
        assert len(client.score(QUERY, DOCUMENTS)) == 4
    held = Held()
    with odd_server(OddServer(np.arange, held)) as url, face(url) as client:
        told = f"{url} gave no answer within 0.3 s: raise the time limit"
        eventually(lambda: told in str(refusal(client, RequestTimeoutError, timeout_s=0.3)) and held.held.is_set())
        assert held.gone.wait(PATIENCE_S)  # the server is told
        held.release()
        for over in (0.0, -1.0):
            assert "was over before this part was sent" in str(refusal(client, RequestTimeoutError, timeout_s=over))
        assert client.score(QUERY, DOCUMENTS) == [0, 1, 2, 3]


def test_what_a_server_said_is_told_when_time_ends_before_the_next_attempt(
    face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "pause_s", lambda attempt: 1e6)
    cut = OddServer(act=refusing(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    with odd_server(cut) as url, face(url, max_documents=10) as client:
        assert "Socket closed" in str(refusal(client, ServerUnavailableError))
    assert len(cut.sizes) == 1


def test_what_a_server_said_is_told_when_time_ends_within_the_next_attempt() -> None:
    made = Attempts(Balancer(["a"]), RetryBudget(), 1, 2, Deadline.after(60))
    made.failed(made.take(), ServerUnavailableError("a: Socket closed", "a"))
    made.failed(made.take(), RequestTimeoutError("a gave no answer", "a"))
    assert type(made.failure) is RequestTimeoutError
    assert str(made.failure) == "a gave no answer; before that, a: Socket closed"


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 1e300])
def test_a_time_limit_is_a_number_to_count_with(face: Any, limit: float) -> None:
    with odd_server(OddServer()) as url, face(url) as client:
        assert "timeout_s must be" in str(refusal(client, InvalidRequestError, timeout_s=limit))
        assert client.score(QUERY, DOCUMENTS, timeout_s=1e9) == [0.0] * 4


def test_a_connection_that_is_cut_in_the_middle(face: Any, server: Server, client: RankingClient) -> None:
    whole = pytest.approx(client.score(QUERY, LARGE), abs=SCORES_ABS)
    with Relay(server.url) as relay:
        with face(relay.url, attempts=1) as once:
            assert once.score(QUERY, LARGE) == whole
            relay.cuts = 1
            assert "start it, or name its gRPC port" in str(refusal(once, ServerUnavailableError, LARGE))
        with face(relay.url) as usual:  # with the attempts that there are by default nobody notices
            usual.document_limit()
            relay.cuts = 1
            assert usual.score(QUERY, LARGE) == usual.score(QUERY, LARGE) == whole
        assert relay.cuts == 0


def test_a_connection_that_takes_its_time(face: Any, server: Server) -> None:
    """As over a long way with TLS, or to a server that is busy."""
    with Relay(server.url) as relay, face(relay.url, attempts=1) as client, ThreadPoolExecutor(1) as pool:
        with relay.stalled():
            scoring = pool.submit(client.score, QUERY, DOCUMENTS)
            time.sleep(1.5)
        assert len(scoring.result()) == 4


@given(load=st.floats(1.6, 20.0), capacity=st.integers(20, 200))
@settings(max_examples=20, deadline=None)
def test_a_throttle_leaves_servers_a_quarter_more_than_they_answer(load: float, capacity: int) -> None:
    now, refusal, random_state = 0.0, ServerOverloadedError("full", "here", 0.25), random.getstate()
    random.seed(0)
    throttle, sent, answered, due = Throttle(lambda: now), 0, 0, 0.0
    for number in range(round(10 * load * capacity)):
        now = number / (load * capacity)
        try:
            throttle.check()
        except ServerOverloadedError as error:
            assert (error.server, error.retry_after_s) == ("here", 0.25)
            continue
        sent += now > 5
        if now >= due:  # a server that answers so many a second, and lets a few wait
            due = max(due, now - 10 / capacity) + 1 / capacity
            answered += now > 5
            throttle.answered()
        else:
            throttle.overloaded(refusal)
    random.setstate(random_state)
    assert answered > 0.9 * 5 * capacity
    assert sent < 1.2 * (1.25 * 5 * capacity + 5 * 10)
    now += 20
    for _ in range(10):
        throttle.check()  # all is forgotten


def test_a_call_that_most_servers_would_refuse_is_not_sent(face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "REMEMBERED_S", 60.0)  # however slow the machine is
    service = OddServer(act=refusing(grpc.StatusCode.UNAVAILABLE, "retry in 0.25 s"))
    with odd_server(service) as url, face(url, attempts=1, max_documents=10) as client:
        errors = [refusal(client, ServerOverloadedError) for _ in range(200)]
    unsent = [error for error in errors if "not sent" in str(error)]
    assert {error.retry_after_s for error in errors if isinstance(error, ServerOverloadedError)} == {0.25}
    assert len(service.sizes) == 200 - len(unsent) >= 10
    assert unsent
