"""A document compressor for LangChain.

compressor = DisRankerRerank(servers="gpu1:8001", top_n=5)
best = compressor.compress_documents(documents, "garden bridge")
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from client import RankedDocument
from client.integrations.fields import RerankerFields


class DisRankerRerank(RerankerFields, BaseDocumentCompressor):
    """The best documents first, with their probability as ``relevance_score`` among their metadata.

    ``settings`` are further ones of the client; a dump has no authorization. Raises its RankingErrors.
    """

    model_config = ConfigDict(extra="forbid")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        return _best(documents, self._client.rank(query, self._given(documents), self.top_n)) if documents else []

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        if not documents:
            return []
        return _best(documents, await self._asynchronous.rank(query, self._given(documents), self.top_n))

    def _given(self, documents: Sequence[Document]) -> list[dict[str, object]]:
        return [{"title": one.metadata.get(self.title_key), "text": one.page_content} for one in documents]


def _best(documents: Sequence[Document], ranked: Sequence[RankedDocument]) -> list[Document]:
    """Copies, since a caller may keep the documents for another query."""
    return [
        (one := documents[found.index]).model_copy(
            update={"metadata": {**one.metadata, "relevance_score": found.probability}}
        )
        for found in ranked
    ]
