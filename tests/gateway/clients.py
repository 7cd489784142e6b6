"""The clients of docs/gateway.md's table: each ranks at a gateway, by itself or by the request that it sends.

A client that needs other libraries than ours is there by its request, recorded from the version that the table names,
and by what it reads in the answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import httpx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    import cohere

QUERY = "garden bridge"
TEXTS = ["river bridge", "copper forest", "garden market of silver", "中文 标题", "winter garden"]
BEST = 3  # of them are asked for
Ranked = list[tuple[int, float]]  # index and probability


class Client(NamedTuple):
    """``rank`` gives the ranking of TEXTS, by a model, at the gateway of a URL; it raises what the client raises."""

    name: str
    version: str
    how: str
    rank: Callable[[str, str], Ranked]

    def row(self, result: str) -> str:
        """Its line in the table."""
        return f"| {self.name} | {self.version} | {self.how} | {result} |"


def installed(name: str, package: str, how: str, rank: Callable[[str, str], Ranked]) -> Client:
    return Client(name, f"{package} {version(package)}", f"`{how}`", rank)


def recorded(name: str, package: str, route: str, body: dict[str, Any], read: Callable[[Any], Ranked]) -> Client:
    """A client by its request, to which a model is added where it names one."""

    def rank(url: str, model: str) -> Ranked:
        named = {**body, "model": model} if "model" in body else body
        answer = httpx.post(f"{url}{route}", json=named)
        if answer.is_error:
            raise RuntimeError(answer.json()["detail"])
        return read(answer.json())

    return Client(name, package, f"`POST {route}`, recorded", rank)


def _cohere_v1(url: str, model: str) -> Ranked:
    with httpx.Client() as http:
        client = cohere.Client("no key", base_url=url, httpx_client=http)
        answer = client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=BEST, return_documents=True)
    assert answer.meta and answer.meta.api_version and answer.meta.api_version.version == "1"
    assert [one.document and one.document.text for one in answer.results] == [
        TEXTS[one.index] for one in answer.results
    ]
    return [(one.index, one.relevance_score) for one in answer.results]


def _cohere_v2(url: str, model: str) -> Ranked:
    with httpx.Client() as http:
        client = cohere.ClientV2("no key", base_url=url, httpx_client=http)
        answer = client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=BEST, max_tokens_per_doc=4096)
        assert model in [known.name for known in client.models.list(endpoint="rerank").models]
    return [(one.index, one.relevance_score) for one in answer.results]


def _langchain(url: str, model: str) -> Ranked:
    from langchain_cohere import CohereRerank  # not before: every process collects every file
    from langchain_core.documents import Document
    from pydantic import SecretStr

    reranker = CohereRerank(model=model, base_url=url, cohere_api_key=SecretStr("no key"), top_n=BEST)
    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(TEXTS)]
    found = reranker.compress_documents(documents, QUERY)
    return [(one.metadata["place"], one.metadata["relevance_score"]) for one in found]


def _llama_index(reranker: Any) -> Ranked:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(place))) for place, text in enumerate(TEXTS)]
    return [(int(one.node.node_id), one.score) for one in reranker.postprocess_nodes(nodes, QueryBundle(QUERY))]


def _llama_index_cohere(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.cohere_rerank import CohereRerank  # type: ignore[import-untyped]

    return _llama_index(CohereRerank(model=model, base_url=url, api_key="no key", top_n=BEST))


def _llama_index_jina(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank  # type: ignore[import-untyped]

    return _llama_index(JinaRerank(model=model, base_url=f"{url}/v1", api_key="no key", top_n=BEST))


def _voyage(url: str, model: str) -> Ranked:
    import voyageai

    client = voyageai.Client("no key", base_url=f"{url}/v1")  # type: ignore[attr-defined]
    answer = client.rerank(QUERY, TEXTS, model=model, top_k=BEST)
    assert answer.total_tokens == 0
    assert [one.document for one in answer.results] == [TEXTS[one.index] for one in answer.results]
    return [(one.index, one.relevance_score) for one in answer.results]


def _results(answer: Any) -> Ranked:
    return [(one["index"], one["relevance_score"]) for one in answer["results"]]


def _jina(answer: Any) -> Ranked:
    assert answer["model"] and answer["usage"]["total_tokens"] == 0
    return _results(answer)


def _with_documents(answer: Any) -> Ranked:
    assert [one["document"]["text"] for one in answer["results"]] == [TEXTS[one["index"]] for one in answer["results"]]
    return _jina(answer)


def _data(answer: Any) -> Ranked:
    assert [one["document"] for one in answer["data"]] == [TEXTS[one["index"]] for one in answer["data"]]
    return [(one["index"], one["relevance_score"]) for one in answer["data"]]


def _mixedbread(answer: Any) -> Ranked:
    assert (answer["top_k"], answer["return_input"], answer["usage"]["total_tokens"]) == (BEST, True, 0)
    assert [one["input"] for one in answer["data"]] == [TEXTS[one["index"]] for one in answer["data"]]
    return [(one["index"], one["score"]) for one in answer["data"]]


def _list(answer: Any) -> Ranked:
    assert all(set(one) == {"index", "score"} for one in answer)
    return [(one["index"], one["score"]) for one in answer]


def _weaviate(answer: Any) -> Ranked:
    assert [one["document"] for one in answer["scores"]] == TEXTS
    return sorted(((index, one["score"]) for index, one in enumerate(answer["scores"])), key=lambda one: -one[1])


def _score(answer: Any) -> Ranked:
    return sorted(((one["index"], one["score"]) for one in answer["data"]), key=lambda one: -one[1])


DOCUMENTS: dict[str, Any] = {"query": QUERY, "documents": TEXTS}
NAMED = {**DOCUMENTS, "model": ""}
TOP_N = {**NAMED, "top_n": BEST}
TEXT: dict[str, Any] = {"query": QUERY, "texts": TEXTS}
RETURNED = {**TOP_N, "return_documents": True}

CLIENTS = [
    installed("Cohere, v1", "cohere", "cohere.Client(base_url=URL)", _cohere_v1),
    installed("Cohere, v2", "cohere", "cohere.ClientV2(base_url=URL)", _cohere_v2),
    installed("LangChain, Cohere", "langchain-cohere", "CohereRerank(base_url=URL)", _langchain),
    installed(
        "LlamaIndex, Cohere", "llama-index-postprocessor-cohere-rerank", "CohereRerank(base_url=URL)",
        _llama_index_cohere,
    ),
    installed(
        "LlamaIndex, Jina", "llama-index-postprocessor-jinaai-rerank", "JinaRerank(base_url=f'{URL}/v1')",
        _llama_index_jina,
    ),
    installed("Voyage", "voyageai", "voyageai.Client(base_url=f'{URL}/v1')", _voyage),
    recorded("LangChain, Jina", "langchain-community 0.4.2", "/v1/rerank", TOP_N, _results),
    recorded("Haystack, Jina", "jina-haystack 2.0.1", "/v1/rerank", TOP_N, _jina),
    recorded("Haystack, Cohere", "cohere-haystack 11.0.0", "/v2/rerank", TOP_N, _results),
    recorded(
        "Haystack, TEI", "huggingface-api-haystack 3.1.0", "/rerank", {**TEXT, "raw_scores": False}, _list
    ),
    recorded("LlamaIndex, TEI", "llama-index-postprocessor-tei-rerank 0.6.0", "/rerank", TEXT, _list),
    recorded(
        "tei-client", "tei-client 0.2.4", "/rerank",
        {**TEXT, "return_text": False, "raw_scores": False, "truncate": False, "truncation_direction": "Right"}, _list,
    ),
    recorded("LiteLLM, `hosted_vllm/`", "litellm 1.110.2", "/rerank", RETURNED, _with_documents),
    recorded("LiteLLM, `cohere/`", "litellm 1.110.2", "/v2/rerank", RETURNED, _with_documents),
    recorded("LiteLLM, `jina_ai/`", "litellm 1.110.2", "/v1/rerank", RETURNED, _with_documents),
    recorded(
        "LiteLLM, `voyage/`", "litellm 1.110.2", "/v1/rerank", {**NAMED, "top_k": BEST, "return_documents": True}, _data
    ),
    recorded(
        "LiteLLM, `infinity/` with `return_documents=False`", "litellm 1.110.2", "/v1/rerank",
        {**TOP_N, "return_documents": False}, _jina,
    ),
    recorded(
        "Infinity's client", "infinity-client 0.0.78", "/rerank", {**RETURNED, "raw_scores": False}, _with_documents
    ),
    recorded(
        "mixedbread", "mixedbread 0.54.0", "/v1/reranking",
        {"model": "", "query": QUERY, "input": TEXTS, "top_k": BEST, "return_input": True}, _mixedbread,
    ),
    recorded("llama.cpp's example", "of 2025", "/v1/reranking", TOP_N, _jina),
    recorded("vLLM's example of a ranking", "of 2025", "/rerank", NAMED, _results),
    recorded(
        "vLLM's example of scores", "of 2025", "/score", {"model": "", "text_1": QUERY, "text_2": TEXTS}, _score
    ),
    recorded("Weaviate, reranker-transformers", "of 2026", "/rerank", {**DOCUMENTS, "property": ""}, _weaviate),
    recorded("Weaviate, reranker-cohere", "of 2026", "/v2/rerank", {**NAMED, "return_documents": False}, _results),
]  # fmt: skip
