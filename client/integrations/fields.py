"""The fields of the components that are Pydantic models, LangChain's and LlamaIndex's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainSerializer, PrivateAttr

from client import AsyncRankingClient, RankingClient
from client.integrations import clients_of, without_secrets


class RerankerFields(BaseModel):
    """A model's servers and how they are asked. ``settings`` are further ones of the client."""

    servers: str | tuple[str, ...] = "localhost:8001"
    model: str = "ranker"
    top_n: int | None = Field(None, ge=1)
    title_key: str = "title"  # of the metadata
    settings: Annotated[dict[str, Any], PlainSerializer(without_secrets)] = Field(default_factory=dict, repr=False)
    _client: RankingClient = PrivateAttr()
    _asynchronous: AsyncRankingClient = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._client, self._asynchronous = clients_of(self.servers, self.model, self.settings)
