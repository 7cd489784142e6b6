"""The client library: RankingClient for threads, AsyncRankingClient for asyncio. It needs tritonclient and numpy.

with RankingClient("localhost:8001") as client:
    documents = [Document(doc_id="d1", title="A title", summary="A summary"), "plain text"]
    for found in client.rank("garden bridge", documents):
        print(found.rank, found.doc_id, found.score)
"""

from client.asynchronous import AsyncRankingClient
from client.balancer import Health
from client.connection import Connection
from client.errors import (
    AuthenticationError,
    InvalidAnswerError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingError,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from client.ranking import RankingClient
from client.records import Document, DocumentLike, RankedDocument, RankingRequest, Scores, Truncation

DISTRIBUTION = "disranker" if __name__ == "client" else "disranker-client"  # the package's other name

__all__ = [
    "DISTRIBUTION",
    "AsyncRankingClient",
    "AuthenticationError",
    "Connection",
    "Document",
    "DocumentLike",
    "Health",
    "InvalidAnswerError",
    "InvalidRequestError",
    "ModelNotReadyError",
    "RankedDocument",
    "RankingClient",
    "RankingError",
    "RankingRequest",
    "RequestTimeoutError",
    "Scores",
    "ServerError",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "Truncation",
]
