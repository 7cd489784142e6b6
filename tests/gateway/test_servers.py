"""The gateway's answers and log when the ranking server does not answer, or the client is gone."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client import (
    AuthenticationError,
    InvalidAnswerError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingError,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from client.gateway.problems import of_ranking
from tests.support.gateways import ASKED, TEI_ASKED, Gateway, asking, gateway_running, refusal
from tests.support.relay import Relay
from tests.support.servers import Server, ports
from tests.support.waiting import PATIENCE_S, eventually


@pytest.fixture(scope="module")
def relay(server: Server) -> Iterator[Relay]:
    with Relay(server.url) as relay:
        yield relay


@pytest.fixture(scope="module")
def fragile(server: Server, relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One request at a time, to a server that may stall, to one that is not there, and for a model that is not."""
    models = f"ranker=@{relay.url},down=ranker@127.0.0.1:{ports()['grpc']},absent=nowhere@{server.url}"
    log = tmp_path_factory.mktemp("fragile") / "log"
    with gateway_running(log, "--models", models, "--max_concurrent", "1", "--timeout", "10") as gateway:
        yield gateway


def test_a_server_that_is_not_there(fragile: Gateway) -> None:
    answer = httpx.post(f"{fragile.url}/v2/rerank", json={**ASKED, "model": "down"})
    assert "no server answers at 127.0.0.1:" in refusal(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    answer = httpx.post(f"{fragile.url}/rerank", json={**TEI_ASKED, "model": "absent"})
    assert "does not serve the model 'nowhere'" in refusal(answer, 503)
    assert answer.json()["error_type"] == "Unhealthy"


def test_a_server_that_stalls(fragile: Gateway, relay: Relay) -> None:
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()
    with relay.stalled():
        answer = httpx.post(f"{fragile.url}/v2/rerank", json=ASKED, headers={"X-Request-Timeout-Ms": "1500"})
        assert re.search(r"gave no answer within [01]\.\d+ s", refusal(answer, 504))  # of the limit, what was left
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_more_at_a_time_than_there_are_places(fragile: Gateway, relay: Relay) -> None:
    with relay.stalled():
        first = threading.Thread(target=httpx.post, args=(f"{fragile.url}/v2/rerank",), kwargs={"json": ASKED})
        first.start()
        eventually(lambda: fragile.metrics("disranker_gateway_requests_in_flight") == 2)  # /metrics is one
        answer = httpx.post(f"{fragile.url}/rerank", json=TEI_ASKED)
        assert "try again" in refusal(answer, 429)
        assert answer.json()["error_type"] == "Overloaded"
        assert answer.headers["Retry-After"] == "1"
    first.join()
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_a_client_that_goes_away_gives_its_place_back(fragile: Gateway, relay: Relay) -> None:
    gone = fragile.metrics("disranker_gateway_requests_total", code="499")
    with relay.stalled():
        with asking(fragile, "/v1/rerank", ASKED):
            eventually(lambda: fragile.metrics("disranker_gateway_requests_in_flight") == 2)  # /metrics is one
        eventually(lambda: fragile.metrics("disranker_gateway_requests_total", code="499") == gone + 1)
        assert fragile.metrics("disranker_gateway_requests_in_flight") == 1
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_a_client_that_does_not_send_what_it_announced(fragile: Gateway) -> None:
    host, _, port = fragile.url.removeprefix("http://").partition(":")
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(head)
        assert b" 408 " in connection.recv(1000)
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_what_is_under_way_comes_to_its_end(server: Server, tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    with (
        Relay(server.url) as relay,
        gateway_running(tmp_path / "log", "--servers", relay.url) as gateway,
    ):
        with relay.stalled():
            caller = threading.Thread(target=lambda: answers.append(httpx.post(f"{gateway.url}/v2/rerank", json=ASKED)))
            caller.start()
            eventually(lambda: gateway.metrics("disranker_gateway_requests_in_flight") == 2)
            gateway.process.terminate()
            eventually(lambda: "Shutting down" in gateway.log.read_text())
        caller.join()
        assert answers[0].status_code == 200


def test_health(gateway: Gateway, fragile: Gateway, relay: Relay) -> None:
    answer = httpx.get(f"{gateway.url}/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    answer = httpx.get(f"{fragile.url}/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "models": {"ranker": True, "down": False, "absent": False}}
    with relay.stalled():
        answer = httpx.get(f"{fragile.url}/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert httpx.get(f"{fragile.url}/livez").json() == {"status": "live"}
        assert answer.headers["Retry-After"] == "1"


def test_the_log_has_no_text(fragile: Gateway) -> None:
    secret = {"query": "my secret query", "documents": ["my secret document"], "model": "down"}
    httpx.post(f"{fragile.url}/v2/rerank", json=secret)
    httpx.post(f"{fragile.url}/v2/rerank", json={**secret, "top_n": "secret"})
    httpx.post(f"{fragile.url}/v1/rerank?query=secret", content=b"secret")
    eventually(lambda: '"POST /v1/rerank HTTP/1.1" 422' in fragile.log.read_text())
    shown = fragile.log.read_text()
    assert "/v2/rerank: 503: no server answers at" in shown
    assert "secret" not in shown


STATUS: dict[int, list[type[RankingError]]] = {
    422: [InvalidRequestError],
    502: [AuthenticationError, InvalidAnswerError, ServerError],
    503: [ServerUnavailableError, ServerOverloadedError, ModelNotReadyError],
    504: [RequestTimeoutError],
}


@pytest.mark.parametrize(("error", "status"), [(error, status) for status in STATUS for error in STATUS[status]])
def test_every_error_has_a_status_code(error: type[RankingError], status: int) -> None:
    problem = of_ranking(error("what to do", "gpu1:8001"))
    assert (problem.status, problem.message) == (status, "what to do")
    assert ("Retry-After" in problem.headers) == (status == 503)
