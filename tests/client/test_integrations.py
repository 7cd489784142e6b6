"""The components for LangChain, LlamaIndex and Haystack, each in the hands of its framework."""

from __future__ import annotations

import asyncio
import importlib
import pickle
from collections.abc import Iterator
from typing import Any

import haystack
import numpy as np
import pytest
from haystack.core.errors import PipelineRuntimeError
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument

from client import InvalidRequestError
from client.flags import AUTHORIZATION
from client.integrations import langchain
from client.integrations.haystack import DisRankerRanker
from client.records import sigmoid
from tests.support.clients import QUERY
from tests.support.odd_servers import OddServer, odd_server

TEXTS = ["a", "b", "c"]  # which are scored 0, 1, 2
BEST = [("c", sigmoid(2.0)), ("b", sigmoid(1.0))]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with odd_server(OddServer(np.arange)) as url:
        yield url


def test_langchain(url: str) -> None:
    documents = [LangChainDocument(text, metadata={"title": None, "source": text}) for text in TEXTS]
    given: BaseDocumentCompressor = langchain.DisRankerRerank(servers=url, top_n=2, settings={"timeout_s": 60.0})
    for one in (given, pickle.loads(pickle.dumps(given)), given.model_copy(deep=True)):
        for found in (one.compress_documents(documents, QUERY), asyncio.run(one.acompress_documents(documents, QUERY))):
            assert [(each.page_content, each.metadata["relevance_score"]) for each in found] == BEST
            assert found[0].metadata["source"] == "c"
    assert "relevance_score" not in documents[0].metadata
    assert [*given.compress_documents([], QUERY), *asyncio.run(given.acompress_documents([], QUERY))] == []


def test_llama_index(url: str) -> None:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor  # not before: it takes seconds
    from llama_index.core.schema import NodeWithScore, TextNode

    from client.integrations import llama_index

    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"title": "x"}), score=0.5) for text in TEXTS]
    given: BaseNodePostprocessor = llama_index.DisRankerRerank(servers=url, top_n=2)
    for one in (given, llama_index.DisRankerRerank.from_dict(given.to_dict())):
        for found in (
            one.postprocess_nodes(nodes, query_str=QUERY),
            asyncio.run(one.apostprocess_nodes(nodes, query_str=QUERY)),
        ):
            assert [(each.node.get_content(), each.score) for each in found] == BEST
    assert given.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(InvalidRequestError, match="a query is needed"):
        given.postprocess_nodes(nodes)


def test_haystack(url: str) -> None:
    documents = [haystack.Document(content=text, meta={"title": "x"}) for text in TEXTS]
    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", DisRankerRanker(servers=(url,), top_k=2, settings={"timeout_s": 60.0}))
    again = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[DisRankerRanker.__module__])
    asked: dict[str, Any] = {"ranker": {"query": QUERY, "documents": documents}}
    answers = [pipeline.run(asked), again.run(asked), asyncio.run(again.run_async(asked))]
    for answer in answers:
        assert [(each.content, each.score) for each in answer["ranker"]["documents"]] == BEST
    with pytest.raises(PipelineRuntimeError, match="top_k must be at least 1, not 0"):
        pipeline.run({"ranker": {**asked["ranker"], "top_k": 0}})
    assert pipeline.run({"ranker": {**asked["ranker"], "top_k": 1}})["ranker"]["documents"][0].content == "c"
    assert pipeline.run({"ranker": {"query": QUERY, "documents": []}}) == {"ranker": {"documents": []}}


@pytest.mark.parametrize(
    ("framework", "name", "saver"),
    [
        ("haystack", "DisRankerRanker", "to_dict"),
        ("llama_index", "DisRankerRerank", "to_dict"),
        ("langchain", "DisRankerRerank", "model_dump"),
    ],
)
def test_an_authorization_is_not_saved_and_may_come_from_the_environment(
    framework: str, name: str, saver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = getattr(importlib.import_module(f"client.integrations.{framework}"), name)
    monkeypatch.setenv(AUTHORIZATION, "Bearer environment")
    given = kind(settings={"authorization": "Bearer secret", "attempts": 2})
    assert given._client.connection.headers == {"authorization": "Bearer secret"}
    assert kind()._asynchronous.connection.headers == {"authorization": "Bearer environment"}
    saved = str(getattr(given, saver)())
    assert "'settings': {'attempts': 2}" in saved and "secret" not in f"{saved} {given!r}"
    if kind is not DisRankerRanker:  # workers get the whole of it, as they do of a client
        assert pickle.loads(pickle.dumps(given)).settings == given.settings
