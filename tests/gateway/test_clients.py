"""The gateway as the clients of Cohere's and text-embeddings-inference's APIs use it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    import cohere

from client.records import sigmoid
from model_repository.tokenizer.pair_encoding import Document
from tests.support.gateways import Gateway
from tests.support.servers import Reference

QUERY = "garden bridge"
TEXTS = ["river bridge", "copper forest", "garden market of silver", "中文 标题", "winter garden"]
LONG = "winter " * 300

pytestmark = pytest.mark.filterwarnings("ignore")  # those libraries' own


@pytest.fixture
def collected() -> Iterator[None]:
    """LangChain and LlamaIndex do not close their connections: they go here, not in somebody else's test."""
    yield
    gc.collect()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as http:
        yield http


@pytest.fixture(scope="module")
def probabilities(reference: Reference) -> Callable[..., list[float]]:
    """The probability of each (title, summary)."""

    def probabilities(*texts: tuple[str, str]) -> list[float]:
        documents = [Document(title=title, summary=summary) for title, summary in texts]
        return [sigmoid(float(score)) for score in reference(QUERY, documents).scores]

    return probabilities


@pytest.fixture(scope="module")
def expected(probabilities: Any) -> Any:
    return probabilities(*(("", text) for text in TEXTS))


def assert_ranked(found: list[tuple[int, float]], expected: list[float]) -> None:
    assert [index for index, _ in found] == np.argsort(-np.array(expected), kind="stable")[: len(found)].tolist()
    assert [score for _, score in found] == pytest.approx([expected[index] for index, _ in found], abs=1e-4)


def test_coheres_sdk_of_version_1(gateway: Gateway, expected: list[float], probabilities: Any, http: Any) -> None:
    client = cohere.Client("no key", base_url=gateway.url, httpx_client=http)
    answer = client.rerank(query=QUERY, documents=TEXTS, top_n=3, return_documents=True)
    assert_ranked([(one.index, one.relevance_score) for one in answer.results], expected)
    assert len(answer.results) == 3
    assert answer.id and answer.meta and answer.meta.api_version
    assert answer.meta.api_version.version == "1"
    for one in answer.results:
        assert one.document and one.document.text == TEXTS[one.index]
    # Objects are ranked by their fields.
    documents = [{"title": text, "text": "river", "summary": "copper"} for text in TEXTS]
    for fields, texts in (
        (None, [("", "river")] * len(TEXTS)),
        (["title", "summary", "text"], [(text, "copper\nriver") for text in TEXTS]),
    ):
        answer = client.rerank(query=QUERY, documents=documents, return_documents=True, rank_fields=fields)
        assert all(one.document and one.document.dict() == documents[one.index] for one in answer.results)
        found = {one.index: one.relevance_score for one in answer.results}
        assert [found[index] for index in range(len(TEXTS))] == pytest.approx(probabilities(*texts), abs=1e-4)


def test_coheres_sdk_of_version_2(gateway: Gateway, expected: list[float], http: Any) -> None:
    client = cohere.ClientV2("no key", base_url=gateway.url, httpx_client=http)
    answer = client.rerank(model="again", query=QUERY, documents=TEXTS, max_tokens_per_doc=4096)
    assert_ranked([(one.index, one.relevance_score) for one in answer.results], expected)
    assert answer.meta and answer.meta.warnings and "max_tokens_per_doc" in answer.meta.warnings[0]
    with pytest.raises(cohere.NotFoundError, match=r"no model 'rerank-v3\.5': there is ranker, again"):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.UnprocessableEntityError, match="query: String should have at least 1 character"):
        client.rerank(model="ranker", query="", documents=TEXTS)


@pytest.mark.usefixtures("collected")
def test_langchain_and_llama_index(gateway: Gateway, expected: list[float]) -> None:
    from langchain_cohere import CohereRerank as LangChainRerank  # not before: every process collects every file
    from langchain_core.documents import Document as LangChainDocument
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexRerank  # type: ignore[import-untyped]

    rerank = LangChainRerank(model="ranker", base_url=gateway.url, cohere_api_key=SecretStr("no key"), top_n=4)
    documents = [LangChainDocument(text, metadata={"place": place}) for place, text in enumerate(TEXTS)]
    found = rerank.compress_documents(documents, QUERY)
    assert len(found) == 4
    assert_ranked([(one.metadata["place"], one.metadata["relevance_score"]) for one in found], expected)

    other = LlamaIndexRerank(model="ranker", base_url=gateway.url, api_key="no key", top_n=5)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(place))) for place, text in enumerate(TEXTS)]
    ranked = other.postprocess_nodes(nodes, QueryBundle(QUERY))
    assert_ranked([(int(one.node.node_id), one.score or 0.0) for one in ranked], expected)


def test_what_jinas_clients_read(gateway: Gateway, expected: list[float]) -> None:
    asked = {"model": "ranker", "query": QUERY, "documents": [{"text": text} for text in TEXTS], "top_n": 2}
    answer = httpx.post(f"{gateway.url}/v1/rerank", json=asked).json()
    assert_ranked([(one["index"], one["relevance_score"]) for one in answer["results"]], expected)
    assert answer["model"] == "ranker"
    assert answer["usage"] == {"documents": 5, "truncated_documents": 0}


def test_text_embeddings_inference(gateway: Gateway, expected: list[float]) -> None:
    asked = {"query": QUERY, "texts": TEXTS, "raw_scores": False, "return_text": False, "truncate": True}
    answer = httpx.post(f"{gateway.url}/rerank", json=asked)
    assert_ranked([(one["index"], one["score"]) for one in answer.json()], expected)
    assert all(set(one) == {"index", "score"} for one in answer.json())
    raw = httpx.post(f"{gateway.url}/rerank", json={**asked, "raw_scores": True, "return_text": True}).json()
    assert [sigmoid(one["score"]) for one in raw] == pytest.approx([one["score"] for one in answer.json()])
    assert [one["text"] for one in raw] == [TEXTS[one["index"]] for one in raw]


def test_what_was_truncated_is_told(gateway: Gateway, http: httpx.Client) -> None:
    before = gateway.metrics("disranker_gateway_truncated_documents_total")
    documents = ["river", LONG, "copper", {"title": "silver", "summary": LONG}]
    answer = http.post(f"{gateway.url}/v2/rerank", json={"query": QUERY, "documents": documents})
    assert {one["index"] for one in answer.json()["results"] if one["truncated"]} == {1, 3}
    assert answer.headers["X-Truncated-Documents"] == "1,3"
    assert answer.headers["X-Truncated-Count"] == "2"
    assert answer.json()["meta"]["warnings"][0].startswith("2 of 4 documents")
    assert gateway.metrics("disranker_gateway_truncated_documents_total") == before + 2


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [({}, 200, ""), ({"truncate": False}, 413, "texts[1]"), ({"truncation_direction": "Left"}, 422, "not its left")],
)
def test_what_tei_does_with_long_texts(
    gateway: Gateway, http: httpx.Client, fields: dict[str, object], status: int, message: str
) -> None:
    answer = http.post(f"{gateway.url}/rerank", json={"query": QUERY, "texts": ["river", LONG], **fields})
    assert answer.status_code == status
    if status == 200:
        assert {one["index"]: one.get("truncated") for one in answer.json()} == {0: None, 1: True}
        assert answer.headers["X-Truncated-Documents"] == "1"
    else:
        assert message in answer.json()["error"]
        assert answer.json()["error_type"] == "Validation"
    answer = http.post(f"{gateway.url}/rerank", json={"query": QUERY, "texts": ["river"], **fields})
    assert answer.status_code == 200 and "X-Truncated-Documents" not in answer.headers
