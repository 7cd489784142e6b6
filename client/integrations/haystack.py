"""A ranker for pipelines of Haystack.

pipeline.add_component("ranker", DisRankerRanker(servers="gpu1:8001", top_k=5))

Haystack 3 loads a saved pipeline with it by ``Pipeline.load(..., allowed_modules=[DisRankerRanker.__module__])``.
"""

# Haystack reads the types of `run`, so they are not put off here.
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_to_dict

from client import RankedDocument
from client.integrations import clients_of, without_secrets


@component
class DisRankerRanker:
    """The best documents first, with their probability as score.

    ``settings`` are further ones of the client; a saved pipeline has no authorization. Raises its RankingErrors.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "localhost:8001",
        model: str = "ranker",
        top_k: int | None = None,
        title_key: str = "title",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.servers, self.model, self.top_k = servers, model, top_k
        self.title_key, self.settings = title_key, settings or {}  # title_key is of the meta
        self._client, self._asynchronous = clients_of(servers, model, self.settings)

    def to_dict(self) -> dict[str, Any]:
        servers = self.servers if isinstance(self.servers, str) else list(self.servers)
        others = {name: getattr(self, name) for name in ("model", "top_k", "title_key")}
        found: dict[str, Any] = default_to_dict(
            self, servers=servers, settings=without_secrets(self.settings), **others
        )
        return found

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        if not documents:
            return {"documents": []}
        top_k = self.top_k if top_k is None else top_k
        return _best(documents, self._client.rank(query, self._given(documents), top_k))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        if not documents:
            return {"documents": []}
        top_k = self.top_k if top_k is None else top_k
        return _best(documents, await self._asynchronous.rank(query, self._given(documents), top_k))

    def _given(self, documents: Sequence[Document]) -> list[dict[str, object]]:
        return [{"title": one.meta.get(self.title_key), "text": one.content} for one in documents]


def _best(documents: Sequence[Document], ranked: Sequence[RankedDocument]) -> dict[str, list[Document]]:
    """Copies, since another component of the pipeline may have the same documents."""
    return {"documents": [replace(documents[found.index], score=found.probability) for found in ranked]}
