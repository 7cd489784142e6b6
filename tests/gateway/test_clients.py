"""The gateway as the clients of rerank APIs use it; what they have in common is in test_dialects.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

from client.records import sigmoid
from model_repository.tokenizer.pair_encoding import Document
from tests import ROOT
from tests.gateway.clients import CLIENTS, QUERY, TEXTS, Client
from tests.support.gateways import Gateway
from tests.support.servers import Reference

TABLE = (ROOT / "docs/gateway.md").read_text(encoding="utf-8").partition("| client |")[2].partition("\n\n")[0]
NAMES_NO_MODEL = ("Haystack, TEI", "LlamaIndex, TEI", "tei-client", "Weaviate, reranker-transformers")
RESULTS = {True: "ranks; shows what is wrong", False: "ranks"}

pytestmark = pytest.mark.filterwarnings("ignore")  # those libraries' own


@pytest.fixture
def collected(client: Client) -> Iterator[None]:
    """LangChain and LlamaIndex do not close their connections: they go here, not in somebody else's test."""
    yield
    if "recorded" not in client.how:
        gc.collect()


@pytest.fixture(scope="module")
def probabilities(reference: Reference) -> Callable[..., list[float]]:
    """The probability of each (title, summary)."""

    def probabilities(*texts: tuple[str, str]) -> list[float]:
        documents = [Document(title=title, summary=summary) for title, summary in texts]
        return [sigmoid(float(score)) for score in reference(QUERY, documents).scores]

    return probabilities


def _shows_errors(client: Client, url: str) -> bool:
    """Whether a user of the client reads the gateway's message, for which a wrong model is asked."""
    if client.name in NAMES_NO_MODEL:
        return False
    with pytest.raises(Exception, match=r"no model 'nowhere': there is ranker, again"):
        client.rank(url, "nowhere")
    return True


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_ranks_as_the_documentation_says(
    gateway: Gateway, probabilities: Callable[..., list[float]], client: Client
) -> None:
    expected = probabilities(*(("", text) for text in TEXTS))
    found = client.rank(gateway.url, "ranker")
    assert [index for index, _ in found] == np.argsort(-np.array(expected), kind="stable")[: len(found)].tolist()
    assert [score for _, score in found] == pytest.approx([expected[index] for index, _ in found], abs=1e-4)
    assert client.row(RESULTS[_shows_errors(client, gateway.url)]) in TABLE.splitlines()


def test_the_table_has_no_other_clients() -> None:
    assert len(TABLE.splitlines()) == 2 + len(CLIENTS)


def test_objects_are_ranked_by_their_fields(gateway: Gateway, probabilities: Callable[..., list[float]]) -> None:
    documents = [
        {"title": text, "text": "river", "summary": "copper", "id": 7, "of": [None], "by": None} for text in TEXTS
    ]
    for fields, texts in (
        (None, [("", "river")] * len(TEXTS)),
        (["title", "summary", "text"], [(text, "copper\nriver") for text in TEXTS]),
    ):
        asked = {"query": QUERY, "documents": documents, "return_documents": True, "rank_fields": fields}
        results = httpx.post(f"{gateway.url}/v2/rerank", json=asked).json()["results"]
        assert [one["document"] for one in results] == [documents[one["index"]] for one in results]
        found = {one["index"]: one["relevance_score"] for one in results}
        assert [found[index] for index in range(len(TEXTS))] == pytest.approx(probabilities(*texts), abs=1e-4)
