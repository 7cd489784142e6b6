"""Requests of all forms: fields, lengths of documents, packed bodies, paths."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from client.gateway.dialects import Common
from client.gateway.encodings import PACKED_FROM_BYTES
from client.records import sigmoid
from model_repository.tokenizer.pair_encoding import Document
from tests.support.gateways import ASKED, TEI_ASKED, Gateway, refusal
from tests.support.servers import Reference

QUERY = "garden bridge"
LONG = "winter " * 300
WORDS = "river garden market copper silver"


def post(gateway: Gateway, route: str, asked: dict[str, Any], **settings: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}{route}", json=asked, **settings)


def test_what_was_truncated_is_told(gateway: Gateway) -> None:
    before = gateway.metrics("disranker_gateway_truncated_documents_total")
    documents = ["river", LONG, "copper", {"title": "silver", "summary": LONG}]
    answer = post(gateway, "/v2/rerank", {"query": QUERY, "documents": documents})
    assert {one["index"] for one in answer.json()["results"] if one["truncated"]} == {1, 3}
    assert answer.headers["X-Truncated-Documents"] == "1,3"
    assert answer.headers["X-Truncated-Count"] == "2"
    assert answer.json()["meta"]["warnings"][0].startswith("2 of 4 documents")
    assert gateway.metrics("disranker_gateway_truncated_documents_total") == before + 2


@pytest.mark.parametrize(
    ("route", "asked", "status", "place"),
    [
        ("/rerank", {"texts": ["river", LONG]}, 200, ""),
        ("/rerank", {"texts": ["river", LONG], "truncate": False}, 413, "texts[1]"),
        ("/v1/rerank", {"documents": ["river", LONG], "truncation": False}, 400, "documents[1]"),
        ("/v1/rerank", {"documents": ["river", "copper"], "truncation": False}, 200, ""),
    ],
)
def test_a_document_that_must_not_be_cut(
    gateway: Gateway, route: str, asked: dict[str, Any], status: int, place: str
) -> None:
    answer = post(gateway, route, {"query": QUERY, **asked})
    if place:
        assert refusal(answer, status).startswith(f"{place} with the query is longer than the model reads")
    else:
        answer.raise_for_status()


@pytest.mark.parametrize(
    ("route", "asked", "read"),
    [
        ("/v2/rerank", {"documents": [WORDS], "max_tokens_per_doc": 2}, "river garden"),
        (
            "/rerank",
            {"documents": [WORDS], "max_tokens_per_doc": "3", "truncation_side": "left"},
            "market copper silver",
        ),
        ("/rerank", {"texts": [LONG + WORDS], "truncation_direction": "Right"}, "winter winter winter winter winter"),
        ("/rerank", {"texts": [LONG + WORDS], "truncation_direction": "Left"}, WORDS),
        ("/rerank", {"texts": [f"{WORDS} {LONG}"], "truncation_direction": "right"}, WORDS),
        ("/score", {"text_1": QUERY, "text_2": LONG + WORDS, "truncation_side": "left"}, WORDS),
    ],
)
def test_documents_are_cut_by_tokens_on_either_side(
    gateway: Gateway, reference: Reference, route: str, asked: dict[str, Any], read: str
) -> None:
    answer = post(gateway, route, asked if route == "/score" else {"query": QUERY, **asked})
    assert answer.headers["X-Truncated-Documents"] == "0"
    (found,) = answer.json() if "texts" in asked else answer.json().get("results") or answer.json()["data"]
    encoder = reference.encoder
    if "max_tokens_per_doc" not in asked:
        empty = encoder.encode(QUERY, [Document(title="", summary="")])
        rest = "winter " * (encoder.config.max_pair_tokens - len(empty.token_ids) - len(WORDS.split()))
        read = f"{read} {rest}" if "ight" in asked.get("truncation_direction", "") else rest + read
    expected = reference(QUERY, [Document(title="", summary=read)])
    assert found.get("relevance_score", found.get("score")) == pytest.approx(sigmoid(expected.scores[0]), abs=1e-4)
    assert not any(expected.truncated)


@pytest.mark.parametrize(
    ("route", "asked", "count"),
    [
        ("/rerank", {"top_n": 0}, 2),
        ("/v1/reranking", {"top_n": "0"}, 2),
        ("/rerank", {"top_n": "1"}, 1),
        ("/v2/rerank", {"top_n": 9}, 2),
        ("/v1/rerank", {"top_n": None, "return_documents": "true"}, 2),
        ("/v1/rerank", {"top_k": "1"}, 1),
        ("/reranking", {"top_k": 9}, 2),
    ],
)
def test_numbers_and_truths_come_as_clients_send_them(
    gateway: Gateway, route: str, asked: dict[str, Any], count: int
) -> None:
    answer = post(gateway, route, {**ASKED, **asked}).json()
    assert len(answer["data" if "top_k" in asked else "results"]) == count


def test_logits_by_the_names_of_each_api(gateway: Gateway) -> None:
    probable = {one["index"]: one["score"] for one in post(gateway, "/rerank", TEI_ASKED).json()}
    raw = post(gateway, "/rerank", {**TEI_ASKED, "raw_scores": True, "return_text": True}).json()
    assert [one["text"] for one in raw] == [TEI_ASKED["texts"][one["index"]] for one in raw]
    expected = [(one["index"], one["score"]) for one in raw]
    assert [sigmoid(logit) for _, logit in expected] == pytest.approx([probable[index] for index, _ in expected])
    for field in ({"raw_scores": True}, {"use_activation": False}):
        results = post(gateway, "/rerank", {**ASKED, **field}).json()["results"]
        assert [(one["index"], one["relevance_score"]) for one in results] == expected


def test_pairs_are_scored_in_their_order(gateway: Gateway, reference: Reference) -> None:
    queries, documents = ["garden", QUERY, "garden"], ["river", "copper", "winter garden"]
    expected = [
        float(reference(query, [Document(title="", summary=text)]).scores[0])
        for query, text in zip(queries, documents, strict=True)
    ]
    answer = post(gateway, "/v1/score", {"queries": queries, "documents": documents, "use_activation": False}).json()
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-4)


def test_packed_requests_and_answers(gateway: Gateway) -> None:
    text = "garden bridge " * (PACKED_FROM_BYTES // 10)
    asked = {"query": QUERY, "documents": [text], "return_documents": True}
    for encoding in ("gzip", "x-gzip"):
        headers = {"Content-Encoding": encoding, "Content-Type": "application/json", "Accept-Encoding": "gzip"}
        packed = gzip.compress(json.dumps(asked).encode())
        answer = httpx.post(f"{gateway.url}/v2/rerank", content=packed, headers=headers)
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) < len(text) / 10
        assert answer.json()["results"][0]["document"] == {"text": text}
    answer = post(gateway, "/v2/rerank", asked, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("gzip", gzip.compress(b" " * 2**25), 413, "the unpacked body is larger than 16777216 bytes"),
        ("gzip", gzip.compress(b"{}" * 1000)[:-9], 400, "not the whole of it"),
        ("gzip", b"{}", 400, "the body is not gzip"),
        ("gzip", gzip.compress(b"{}"), 422, "query: Field required"),
        ("br", b"{}", 415, "Content-Encoding: 'br' is not known here"),
    ],
    ids=["bomb", "half", "plain", "empty", "brotli"],
)
def test_packed_requests_at_fault(gateway: Gateway, encoding: str, body: bytes, status: int, message: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    answer = httpx.post(f"{gateway.url}/v2/rerank", content=body, headers=headers)
    assert message in refusal(answer, status)
    assert answer.headers.get("Accept-Encoding") == ("gzip" if status == 415 else None)


def test_a_text_that_is_null_is_none() -> None:
    asked = Common.model_validate({"query": "a", "documents": [{"text": None, "title": "b", "summary": "c"}]})
    assert [vars(one) for one in asked.texts()] == [{"doc_id": "", "title": "b", "summary": "c"}]


def test_slashes_and_head(gateway: Gateway) -> None:
    for path in ("/v2/rerank/", "//v1//rerank"):
        post(gateway, path, ASKED).raise_for_status()
    for path in ("/health", "/v1/models/", "/"):
        answer = httpx.head(f"{gateway.url}{path}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0
    assert httpx.head(f"{gateway.url}/v2/rerank").status_code == 405


def test_what_is_served_in_each_format(gateway: Gateway) -> None:
    models = httpx.get(f"{gateway.url}/v1/models").json()
    assert [one["id"] for one in models["data"]] == [one["name"] for one in models["models"]] == ["ranker", "again"]
    info = httpx.get(f"{gateway.url}/info").json()
    assert (info["model_id"], info["max_client_batch_size"], [*info["model_type"]]) == ("ranker", 1000, ["reranker"])
