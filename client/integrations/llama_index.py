"""A node postprocessor for LlamaIndex.

postprocessor = DisRankerRerank(servers="gpu1:8001", top_n=5)
best = postprocessor.postprocess_nodes(nodes, query_str="garden bridge")
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from client import InvalidRequestError, RankedDocument
from client.integrations.fields import RerankerFields


class DisRankerRerank(RerankerFields, BaseNodePostprocessor):
    """The best nodes first, with their probability as score.

    ``settings`` are further ones of the client; a dump has no authorization. Raises its RankingErrors.
    """

    @classmethod
    def class_name(cls) -> str:
        return cls.__name__

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        return _best(nodes, self._client.rank(query, self._given(nodes), self.top_n)) if nodes else []

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        return _best(nodes, await self._asynchronous.rank(query, self._given(nodes), self.top_n)) if nodes else []

    def _given(self, nodes: Sequence[NodeWithScore]) -> list[dict[str, object]]:
        return [
            {"title": one.node.metadata.get(self.title_key), "text": one.node.get_content(MetadataMode.NONE)}
            for one in nodes
        ]


def _query(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise InvalidRequestError("a query is needed: give query_str or query_bundle")
    return bundle.query_str


def _best(nodes: Sequence[NodeWithScore], ranked: Sequence[RankedDocument]) -> list[NodeWithScore]:
    return [NodeWithScore(node=nodes[found.index].node, score=found.probability) for found in ranked]
