"""What the gateway refuses, and what it answers when the ranking server does not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from tests.gateways import Gateway, Passage, gateway_running
from tests.servers import Server, ports

ASKED: dict[str, Any] = {"query": "garden bridge", "documents": ["river", "bridge"]}
TEI_ASKED: dict[str, Any] = {"query": "garden bridge", "texts": ["river", "bridge"]}
KEY = {"Authorization": "Bearer first key"}
PATIENCE_S = 20


@pytest.fixture(scope="module")
def strict(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = ["--max_documents", "3", "--max_body_bytes", "2000", "--api_keys", "first key,second"]
    log = tmp_path_factory.mktemp("strict") / "log"
    with gateway_running(log, "--servers", server.url, *limits) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def passage(server: Server) -> Iterator[Passage]:
    passage = Passage(server.url)
    yield passage
    passage.close()


@pytest.fixture(scope="module")
def fragile(server: Server, passage: Passage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One request at a time, to a server that may stall, to one that is not there, and for a model that is not."""
    models = f"ranker=@{passage.url},down=ranker@127.0.0.1:{ports()['grpc']},absent=nowhere@{server.url}"
    log = tmp_path_factory.mktemp("fragile") / "log"
    with gateway_running(log, "--models", models, "--max_concurrent", "1", "--timeout", "2") as gateway:
        yield gateway


def refused(answer: httpx.Response, status: int) -> str:
    """The message, in the format of the API that was asked."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    if answer.url.path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert set(body) == {"message"}
    return body["message"]


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(("route", "asked"), [("/v1/rerank", ASKED), ("/v2/rerank", ASKED), ("/rerank", TEI_ASKED)])
def test_a_key_is_needed(strict: Gateway, route: str, asked: dict[str, Any]) -> None:
    for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "first key"}):
        answer = httpx.post(f"{strict.url}{route}", json=asked, headers=headers)
        assert "API key" in refused(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for key in ("Bearer first key", "bearer second"):
        httpx.post(f"{strict.url}{route}", json=asked, headers={"Authorization": key}).raise_for_status()
    described = httpx.get(f"{strict.url}/openapi.json").json()["paths"][route]["post"]
    assert described["security"] == [{"HTTPBearer": []}]
    for open_to_all in ("/", "/health", "/metrics", "/v1/models", "/openapi.json", "/docs"):
        httpx.get(f"{strict.url}{open_to_all}").raise_for_status()


def test_too_many_documents(strict: Gateway) -> None:
    answer = httpx.post(f"{strict.url}/v2/rerank", json={**ASKED, "documents": ["a"] * 4}, headers=KEY)
    assert refused(answer, 413) == "4 documents are more than 3: send several requests"
    answer = httpx.post(f"{strict.url}/rerank", json={**TEI_ASKED, "texts": ["a"] * 4}, headers=KEY)
    assert "4 documents are more than 3" in refused(answer, 413)


def test_too_large_a_body(strict: Gateway) -> None:
    large = {**ASKED, "documents": ["a" * 5_000_000]}
    assert "larger than 2000 bytes" in refused(httpx.post(f"{strict.url}/v1/rerank", json=large, headers=KEY), 413)

    def chunked() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(100):
            yield b" " * 1000

    headers = {**KEY, "Content-Type": "application/json"}
    assert "2000 bytes" in refused(httpx.post(f"{strict.url}/rerank", content=chunked(), headers=headers), 413)
    httpx.post(f"{strict.url}/v1/rerank", json=ASKED, headers=KEY).raise_for_status()


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/v1/rerank", b"{", 400, "the body is not JSON"),
        ("/rerank", b"\xff\xfe", 400, "body"),
        ("/v2/rerank", b"[" * 100_000, 400, "body"),
        ("/v2/rerank", b"[]", 422, "the body must be a JSON object"),
        ("/v2/rerank", b"{}", 422, "query: Field required"),
        ("/v2/rerank", b'{"query": "a", "documents": []}', 422, "documents: List should have at least 1 item"),
        (
            "/v2/rerank",
            b'{"query": "a", "documents": ["a", 3]}',
            422,
            "documents[1]: Input should be a valid string or",
        ),
        ("/v1/rerank", b'{"query": "a", "documents": [{"url": "b"}]}', 422, "text or title or summary"),
        (
            "/v1/rerank",
            b'{"query": "a", "documents": [{"text": "b"}], "rank_fields": ["x"]}',
            422,
            "documents[0]: an obj",
        ),
        ("/v2/rerank", b'{"query": "a", "documents": ["b"], "top_n": 0}', 422, "top_n: Input should be greater than 0"),
        ("/v2/rerank", b'{"query": "\\ud800", "documents": ["b"]}', 422, "query: Input should be a valid string"),
        ("/v2/rerank", b'{"query": " ", "documents": ["b"]}', 422, "the query is empty"),
        ("/rerank", b'{"query": "a", "texts": []}', 400, "`texts` cannot be empty"),
        ("/rerank", b'{"query": "a", "texts": [{}]}', 422, "texts[0]: Input should be a valid string"),
        ("/rerank", b'{"query": "a", "texts": ["b"], "truncation_direction": "up"}', 422, "truncation_direction"),
        ("/rerank", b'{"query": "a", "texts": ["b"], "model": "x"}', 404, "no model 'x': there is ranker, again"),
    ],
)
def test_a_request_at_fault(gateway: Gateway, route: str, body: bytes, status: int, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert message in refused(httpx.post(f"{gateway.url}{route}", content=body, headers=headers), status)


def test_a_document_that_is_too_large_for_the_server(gateway: Gateway) -> None:
    large = {**ASKED, "documents": ["a", "b" * 5_000_000]}
    assert "document 1 has 5000000 bytes" in refused(httpx.post(f"{gateway.url}/v2/rerank", json=large), 422)


def test_other_methods_and_routes(gateway: Gateway) -> None:
    answer = httpx.get(f"{gateway.url}/v2/rerank")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert httpx.get(f"{gateway.url}/v3/rerank").json() == {"message": "Not Found"}


def test_a_server_that_is_not_there(fragile: Gateway) -> None:
    answer = httpx.post(f"{fragile.url}/v2/rerank", json={**ASKED, "model": "down"}, timeout=PATIENCE_S)
    assert "no server answers at 127.0.0.1:" in refused(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    answer = httpx.post(f"{fragile.url}/rerank", json={**TEI_ASKED, "model": "absent"}, timeout=PATIENCE_S)
    assert "does not serve the model 'nowhere'" in refused(answer, 503)
    assert answer.json()["error_type"] == "Unhealthy"


def test_a_server_that_stalls(fragile: Gateway, passage: Passage) -> None:
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()
    with passage.stalled():
        answer = httpx.post(f"{fragile.url}/v2/rerank", json=ASKED, timeout=PATIENCE_S)
        assert "no answer within 2 s" in refused(answer, 504)
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_more_at_a_time_than_there_are_places(fragile: Gateway, passage: Passage) -> None:
    with passage.stalled():
        first = threading.Thread(target=httpx.post, args=(f"{fragile.url}/v2/rerank",), kwargs={"json": ASKED})
        first.start()
        eventually(lambda: fragile.metrics("disranker_gateway_requests_in_flight") == 2)  # /metrics is one
        answer = httpx.post(f"{fragile.url}/rerank", json=TEI_ASKED)
        assert "try again" in refused(answer, 429)
        assert answer.json()["error_type"] == "Overloaded"
        assert answer.headers["Retry-After"] == "1"
    first.join()
    httpx.post(f"{fragile.url}/v2/rerank", json=ASKED).raise_for_status()


def test_a_client_that_goes_away_gives_its_place_back(fragile: Gateway, passage: Passage) -> None:
    gone = fragile.metrics("disranker_gateway_requests_total", code="499")
    with passage.stalled():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{fragile.url}/v1/rerank", json=ASKED, timeout=0.3)
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
    passage = Passage(server.url)
    answers: list[httpx.Response] = []
    with gateway_running(tmp_path / "log", "--servers", passage.url) as gateway:
        with passage.stalled():
            asking = threading.Thread(
                target=lambda: answers.append(httpx.post(f"{gateway.url}/v2/rerank", json=ASKED, timeout=PATIENCE_S))
            )
            asking.start()
            eventually(lambda: gateway.metrics("disranker_gateway_requests_in_flight") == 2)
            gateway.process.terminate()
            eventually(lambda: "Shutting down" in gateway.log.read_text())
        asking.join()
        assert answers[0].status_code == 200
    passage.close()


def test_health(gateway: Gateway, fragile: Gateway, passage: Passage) -> None:
    answer = httpx.get(f"{gateway.url}/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    answer = httpx.get(f"{fragile.url}/health", timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "models": {"ranker": True, "down": False, "absent": False}}
    with passage.stalled():
        answer = httpx.get(f"{fragile.url}/health", timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert answer.headers["Retry-After"] == "1"


def test_metrics_count_and_tell_no_text(gateway: Gateway) -> None:
    route = {"route": "/v2/rerank", "code": "200"}
    requests = gateway.metrics("disranker_gateway_requests_total", **route)
    documents = gateway.metrics("disranker_gateway_documents_total", model="again")
    times = gateway.metrics("disranker_gateway_request_seconds_count", route="/v2/rerank")
    httpx.post(f"{gateway.url}/v2/rerank", json={**ASKED, "model": "again"}).raise_for_status()
    httpx.get(f"{gateway.url}/secret-path")
    assert gateway.metrics("disranker_gateway_requests_total", **route) == requests + 1
    assert gateway.metrics("disranker_gateway_documents_total", model="again") == documents + 2
    assert gateway.metrics("disranker_gateway_request_seconds_count", route="/v2/rerank") == times + 1
    assert gateway.metrics("disranker_gateway_requests_total", route="other", code="404") >= 1
    shown = httpx.get(f"{gateway.url}/metrics").text
    assert not any(text in shown for text in ("garden", "river", "secret-path"))


def test_the_log_has_no_text(fragile: Gateway) -> None:
    secret = {"query": "my secret query", "documents": ["my secret document"], "model": "down"}
    httpx.post(f"{fragile.url}/v2/rerank", json=secret, timeout=PATIENCE_S)
    httpx.post(f"{fragile.url}/v2/rerank", json={**secret, "top_n": "secret"})
    httpx.post(f"{fragile.url}/v1/rerank?query=secret", content=b"secret")
    eventually(lambda: '"POST /v1/rerank HTTP/1.1" 422' in fragile.log.read_text())
    shown = fragile.log.read_text()
    assert "/v2/rerank: 503: no server answers at" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError, 422),
        (ServerUnavailableError, 503),
        (ServerOverloadedError, 503),
        (ModelNotReadyError, 503),
        (RequestTimeoutError, 504),
        (AuthenticationError, 502),
        (InvalidAnswerError, 502),
        (ServerError, 502),
    ],
)
def test_every_error_has_a_status_code(error: type[RankingError], status: int) -> None:
    problem = of_ranking(error("what to do", "gpu1:8001"))
    assert (problem.status, problem.message) == (status, "what to do")
    assert ("Retry-After" in problem.headers) == (status == 503)
