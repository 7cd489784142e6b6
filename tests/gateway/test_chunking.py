"""Documents in pieces: which pieces, and that the best one stands for its document."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Document, Scores
from client.gateway.chunking import Chunking, split
from client.records import sigmoid
from model_repository.tokenizer import pair_encoding
from tests.support.gateways import Gateway, gateway_running
from tests.support.servers import Reference, Server

QUERY = "garden bridge"
WORDS = ["river", "garden", "market", "of", "silver", "copper", "forest", "winter", "bridge", "stone"]


@pytest.fixture(scope="module")
def chunking(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    flags = ["--chunk_words", "4", "--chunk_overlap", "1", "--max_chunks", "3"]
    with gateway_running(tmp_path_factory.mktemp("chunking") / "log", "--servers", server.url, *flags) as gateway:
        yield gateway


def pieces(text: str, chunking: Chunking) -> list[str]:
    return [document.summary for document in split([Document(title="title", summary=text)], chunking).documents]


def test_pieces_overlap_and_cover_the_text() -> None:
    text = "a b\tc  d e f\ng h i j"
    assert pieces(text, Chunking(4, 1)) == ["a b\tc  d", "d e f\ng", "g h i j"]
    assert pieces(text, Chunking(4, 0)) == ["a b\tc  d", "e f\ng h", "i j"]
    assert pieces(text, Chunking(9, 8)) == ["a b\tc  d e f\ng h i", "b\tc  d e f\ng h i j"]
    assert pieces(text, Chunking(10, 5)) == pieces(text, Chunking()) == [text]
    assert pieces("", Chunking(4, 1)) == [""]
    assert pieces("银河花园 market 市场", Chunking(3, 1)) == ["银河花", "花园 market", "market 市场"]


@given(st.integers(0, 60), st.integers(1, 9), st.data())
def test_every_word_is_in_a_piece(words: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    text = [str(number) for number in range(words)]
    found = [piece.split() for piece in pieces(" ".join(text), Chunking(length, overlap, 1000))]
    assert max(map(len, found)) <= length
    joined = found[0] + [word for piece in found[1:] for word in piece[overlap:]]
    assert joined == text
    assert all(len(piece) > overlap for piece in found[1:])  # none that is in the one before


def test_the_best_piece_counts_and_what_is_left_out_is_told() -> None:
    documents = [
        Document(title=title, summary=text)
        for title, text in (("t", "a b c d e"), ("u", "a"), ("v", "a b c d e f g h i"))
    ]
    cut = split(documents, Chunking(2, 0, 3))
    assert [document.title for document in cut.documents] == ["t", "t", "t", "u", "v", "v", "v"]
    assert cut.unread == [False, False, True]
    logits = np.array([1, 5, 2, -3, -9, -8, -7], dtype=np.float32)
    merged = cut.merged(Scores(logits, np.array([0, 0, 1, 0, 0, 0, 0], dtype=bool)))
    assert merged.logits.tolist() == [5, -3, -7]
    assert merged.truncated.tolist() == [True, False, True]


def test_the_maximum_over_the_pieces_of_a_real_server(chunking: Gateway, reference: Reference) -> None:
    texts = [" ".join(WORDS), " ".join(WORDS[3:7]), " ".join(WORDS * 2)]
    cut = [[" ".join(WORDS[at : at + 4]) for at in (0, 3, 6)], [texts[1]]]
    cut.append(cut[0])  # of the third only three pieces are read
    expected = [
        max(reference(QUERY, [pair_encoding.Document(title="title", summary=part) for part in parts]).scores.tolist())
        for parts in cut
    ]
    documents = [{"title": "title", "summary": text} for text in texts]
    answer = httpx.post(f"{chunking.url}/v1/rerank", json={"query": QUERY, "documents": documents})
    found = {one["index"]: one for one in answer.json()["results"]}
    assert [found[index]["relevance_score"] for index in range(3)] == pytest.approx(
        [sigmoid(logit) for logit in expected], abs=1e-4
    )
    assert [found[index]["truncated"] for index in range(3)] == [False, False, True]
    assert answer.headers["X-Truncated-Documents"] == "2"
    assert chunking.metrics("disranker_gateway_pieces_total") == 7
    assert chunking.metrics("disranker_gateway_documents_total") == 3


def test_a_request_may_ask_for_fewer_pieces(chunking: Gateway, reference: Reference) -> None:
    asked = {"query": QUERY, "documents": [" ".join(WORDS)], "max_chunks_per_doc": 1}
    (found,) = httpx.post(f"{chunking.url}/v1/rerank", json=asked).json()["results"]
    expected = reference(QUERY, [pair_encoding.Document(title="", summary=" ".join(WORDS[:4]))]).scores[0]
    assert found["relevance_score"] == pytest.approx(sigmoid(float(expected)), abs=1e-4)
    assert found["truncated"]
