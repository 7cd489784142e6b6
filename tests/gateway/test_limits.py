"""The requests that the gateway refuses, and its counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from client.gateway.problems import RERANK_ROUTES, SCORE_ROUTES
from tests.support.gateways import ASKED, TEI_ASKED, Gateway, gateway_running, refusal
from tests.support.servers import Server

DEEP = b'{"query": "a", "documents": [{"text": "b", "c": ' + b"[" * 50 + b"]" * 50 + b"}]}"
LARGE = b'{"query": "a", "documents": ["b", "%s"]}' % (b"c" * 5_000_000)
KEY = {"Authorization": "Bearer first key"}
SCORE_ASKED = [(route, {"text_1": "garden", "text_2": ["river", "bridge"]}) for route in SCORE_ROUTES]


@pytest.fixture(scope="module")
def strict(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = ["--max_documents", "3", "--max_body_bytes", "2000", "--api_keys", "first key,second"]
    limits += ["--root_path", "/ranking", "--models", "first=ranker,*=ranker"]
    log = tmp_path_factory.mktemp("strict") / "log"
    with gateway_running(log, "--servers", server.url, *limits) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("route", "asked"), [*((route, ASKED) for route in RERANK_ROUTES if route not in SCORE_ROUTES), *SCORE_ASKED]
)
def test_a_key_is_needed(strict: Gateway, route: str, asked: dict[str, Any]) -> None:
    # An address for each route: of one, wrong keys are refused by 429 after the tenth.
    elsewhere = httpx.HTTPTransport(local_address=f"127.0.0.{2 + RERANK_ROUTES.index(route)}")
    with httpx.Client(transport=elsewhere) as client:
        for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "first key"}):
            answer = client.post(f"{strict.url}{route}", json=asked, headers=headers)
            assert "API key" in refusal(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    for key in ("Bearer first key", "bearer second"):
        httpx.post(f"{strict.url}{route}", json=asked, headers={"Authorization": key}).raise_for_status()
    described = httpx.get(f"{strict.url}/openapi.json").json()["paths"][route]["post"]
    assert described["security"] == [{"HTTPBearer": []}]
    for open_to_all in ("/", "/health", "/metrics", "/v1/models", "/openapi.json", "/docs"):
        httpx.get(f"{strict.url}{open_to_all}").raise_for_status()


@pytest.mark.parametrize("place", ["", "/ranking"], ids=["taken off", "left"])
def test_a_proxy_may_show_the_gateway_at_a_path(strict: Gateway, place: str) -> None:
    asked = {**ASKED, "model": "whatever-v3"}
    answer = httpx.post(f"{strict.url}{place}/v2/rerank", json=asked, headers=KEY)
    assert answer.json()["model"] == "ranker"  # of any name
    assert httpx.post(f"{strict.url}{place}/v2/rerank", json=asked).status_code == 401
    assert httpx.get(f"{strict.url}{place}/openapi.json").json()["servers"] == [{"url": "/ranking"}]
    assert "'/ranking/openapi.json'" in httpx.get(f"{strict.url}{place}/docs").text
    httpx.get(f"{strict.url}{place}/static-offline-docs/swagger-ui-bundle.js").raise_for_status()
    assert httpx.get(f"{strict.url}/ranking").headers["Location"] == "/ranking/"


def test_too_many_documents(strict: Gateway) -> None:
    answer = httpx.post(f"{strict.url}/v2/rerank", json={**ASKED, "documents": ["a"] * 4}, headers=KEY)
    assert refusal(answer, 413) == "4 documents are more than 3: send several requests"
    answer = httpx.post(f"{strict.url}/rerank", json={**TEI_ASKED, "texts": ["a"] * 4}, headers=KEY)
    assert "4 documents are more than 3" in refusal(answer, 413)
    answer = httpx.post(f"{strict.url}/score", json={"text_1": list("abcd"), "text_2": list("efgh")}, headers=KEY)
    assert "4 documents are more than 3" in refusal(answer, 413)


def test_too_large_a_body(strict: Gateway) -> None:
    large = {**ASKED, "documents": ["a" * 5_000_000]}
    assert "larger than 2000 bytes" in refusal(httpx.post(f"{strict.url}/v1/rerank", json=large, headers=KEY), 413)

    def chunked() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(100):
            yield b" " * 1000

    headers = {**KEY, "Content-Type": "application/json"}
    assert "2000 bytes" in refusal(httpx.post(f"{strict.url}/rerank", content=chunked(), headers=headers), 413)
    httpx.post(f"{strict.url}/v1/rerank", json=ASKED, headers=KEY).raise_for_status()


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/v1/rerank", b"{", 400, "the body is not JSON"),
        ("/rerank", b"\xff\xfe", 400, "body"),
        ("/v2/rerank", b"[" * 100_000, 400, "body"),
        ("/v2/rerank", b"[]", 422, "the body must be a JSON object"),
        ("/v2/rerank", b"{}", 422, "query: Field required"),
        ("/v2/rerank", b'{"query": "a", "documents": []}', 400, "documents: List should have at least 1 item"),
        ("/v2/rerank", b'{"query": "a", "documents": ["a", 3]}', 422, "documents[1]: Input should be a valid string"),
        ("/v1/rerank", b'{"query": "a", "documents": [{"url": "b"}]}', 422, "text or title or summary"),
        ("/v1/rerank", b'{"query": "a", "documents": [{"a": "b"}], "rank_fields": ["x"]}', 422, "documents[0]: an obj"),
        ("/v2/rerank", b'{"query": "", "documents": ["b"]}', 400, "query: String should have at least 1 character"),
        ("/v1/rerank", b'{"query": "a", "documents": [{"text": 3}]}', 422, "documents[0]: text must be a string"),
        ("/v2/rerank", b'{"query": "a", "documents": ["b"], "top_n": 0}', 400, "top_n: Input should be greater"),
        ("/v1/rerank", b'{"query": "a", "documents": ["b"], "top_k": 0}', 400, "top_k: Input should be greater"),
        ("/v2/rerank", b'{"query": "a", "documents": ["b"], "top_n": "some"}', 422, "top_n: Input should be a valid"),
        (
            "/rerank",
            b'{"query": "a", "documents": ["b"], "top_n": true}',
            422,
            "top_n: Input should be a valid integer",
        ),
        ("/v2/rerank", b'{"query": "a", "documents": ["b"], "top_k": 1}', 422, "top_k: there is no such field: did yo"),
        (
            "/rerank",
            b'{"query": "a", "texts": ["b"], "topn": 1}',
            422,
            "topn: there is no such field: did you mean",
        ),
        ("/v1/rerank", b'{"query": "a", "documents": ["b"], "top_k": 1, "top_n": 1}', 422, "top_n: there is no such"),
        ("/v1/reranking", b'{"query": "a", "input": ["b"], "return_documents": true}', 422, "did you mean"),
        ("/v1/reranking", b'{"query": "a", "input": ["b", {}]}', 422, "input[1]: an object needs the field text"),
        ("/score", b'{"text_1": ["a", "b"], "text_2": ["c"]}', 400, "text_1 has 2 texts and text_2 1: give one, or as"),
        ("/v1/score", b'{"queries": "a"}', 422, "documents: Field required"),
        ("/score", b'{"queries": "a", "documents": []}', 400, "documents: List should have at least 1 item"),
        ("/v2/rerank", b'{"query": "\\ud800", "documents": ["b"]}', 422, "query: Input should be a valid string"),
        ("/v2/rerank", b'{"query": " ", "documents": ["b"]}', 422, "the query is empty"),
        pytest.param("/v1/rerank", DEEP, 422, "documents[0]: an object may be nested 50 deep", id="deep"),
        pytest.param("/v2/rerank", LARGE, 422, "document 1 has 5000000 bytes", id="too large for the server"),
        ("/rerank", b'{"query": "a", "texts": []}', 400, "texts: List should have at least 1 item"),
        ("/rerank", b'{"query": "a", "texts": [{}]}', 422, "texts[0]: Input should be a valid string"),
        ("/rerank", b'{"query": "a", "texts": ["b"], "truncation_direction": "up"}', 422, "truncation_direction"),
        ("/rerank", b'{"query": "a", "texts": ["b"], "model": "x"}', 404, "no model 'x': there is ranker, again"),
    ],
)
def test_a_request_at_fault(gateway: Gateway, route: str, body: bytes, status: int, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert message in refusal(httpx.post(f"{gateway.url}{route}", content=body, headers=headers), status)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v2/rerank", b'{"query": "a", "documents": ["\\ud83d"], "return_documents": true}'),
        ("/v1/rerank", b'{"query": "a", "documents": [{"text": "\\ud83d"}], "return_documents": true}'),
        ("/rerank", b'{"query": "a", "texts": ["\\ud83d"], "return_text": true}'),
    ],
)
def test_half_a_character_comes_back_as_its_replacement(gateway: Gateway, route: str, body: bytes) -> None:
    answer = httpx.post(f"{gateway.url}{route}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and "\ufffd" in answer.text


def test_other_methods_and_routes(gateway: Gateway) -> None:
    answer = httpx.get(f"{gateway.url}/v2/rerank")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert refusal(httpx.get(f"{gateway.url}/v3/rerank"), 404) == "Not Found"


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
