"""The client against a running server."""

from __future__ import annotations

import numpy as np
import pytest

from client import (
    Document,
    InvalidRequestError,
    ModelNotReadyError,
    RankingClient,
    RequestTimeoutError,
    ServerUnavailableError,
)
from model_repository.tokenizer import pair_encoding
from tests.support.servers import Reference, Server, ports

QUERY = "garden bridge"
DOCUMENTS = [
    Document("d7", "river bridge", "garden market of silver"),
    Document("d8", "中文 标题", ""),
    Document("d9", "", "winter " * 300),
    Document("", "copper", "forest"),
]


@pytest.fixture
def client(server: Server) -> RankingClient:
    return RankingClient(server.url)


def test_rank_orders_by_score_and_tells_what_was_cut(client: RankingClient, reference: Reference) -> None:
    expected = reference(QUERY, [pair_encoding.Document(one.title, one.summary) for one in DOCUMENTS])
    ranked = client.rank(QUERY, DOCUMENTS)
    assert [found.rank for found in ranked] == [1, 2, 3, 4]
    assert [found.index for found in ranked] == np.argsort(-expected.scores).tolist()
    for found in ranked:
        assert found.score == pytest.approx(expected.scores[found.index], abs=1e-4)
        assert found.doc_id == (DOCUMENTS[found.index].doc_id or "3")
        assert found.title == DOCUMENTS[found.index].title
        assert found.truncated == (found.doc_id == "d9")
    assert client.rank(QUERY, DOCUMENTS, top_k=2) == ranked[:2]
    assert client.rank(QUERY, DOCUMENTS, top_k=9) == ranked


def test_documents_may_be_mappings_and_strings(client: RankingClient) -> None:
    expected = client.score(QUERY, [Document("", "river", "bridge"), Document("", "river bridge", "")])
    assert client.score(QUERY, [{"title": "river", "summary": "bridge", "url": "ignored"}, "river bridge"]) == expected
    assert expected[0] == expected[1]


def test_equal_scores_keep_the_callers_order(client: RankingClient) -> None:
    assert [found.index for found in client.rank(QUERY, ["river"] * 5)] == [0, 1, 2, 3, 4]


def test_a_lone_surrogate_is_what_it_is_in_training(client: RankingClient, reference: Reference) -> None:
    text = "river \ud83d bridge \ud83d\ude00"
    expected = reference(QUERY, [pair_encoding.Document(text, "")]).scores
    assert client.score(QUERY, [text]) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        (" ", ["river"], "the query is empty"),
        (QUERY, [], "no documents: a request has at least one"),
        (QUERY, "river", "a list of documents, not one string"),
        (3, ["river"], "the query must be a string, not int"),
        (QUERY, ["a", "b" * 1_000_001], "document 1 has 1000001 bytes"),
        (QUERY, [{"title": 3}], "'title' of a document must be a string, not int"),
    ],
)
def test_a_request_at_fault(client: RankingClient, query: str, documents: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        client.rank(query, documents)


def test_top_k_is_positive(client: RankingClient) -> None:
    with pytest.raises(InvalidRequestError, match="top_k must be at least 1, not 0"):
        client.rank(QUERY, DOCUMENTS, top_k=0)


def test_servers_that_do_not_answer(server: Server) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    with RankingClient(nowhere) as client, pytest.raises(ServerUnavailableError, match=f"answers at {nowhere}"):
        client.score(QUERY, DOCUMENTS)
    with RankingClient(server.url, "rerank") as client, pytest.raises(ModelNotReadyError, match="model 'rerank'"):
        client.score(QUERY, DOCUMENTS)
    with RankingClient(server.url, timeout_s=1e-4) as client, pytest.raises(RequestTimeoutError, match="within"):
        client.score(QUERY, DOCUMENTS)
