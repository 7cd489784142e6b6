"""The forms of rerank requests. The names of its fields tell which one a request has, and so that of its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from client import Document, Truncation
from client.gateway.answers import (
    DataAnswer,
    DocumentScore,
    Item,
    Rank,
    Ranking,
    Result,
    ResultsAnswer,
    WeaviateAnswer,
    listed,
    results,
    score_of,
)
from client.gateway.fields import (
    Best,
    Count,
    CountOrAll,
    Documents,
    Flag,
    Given,
    Ignored,
    Model,
    Query,
    RankFields,
    RequestBody,
    Returned,
    Texts,
)
from client.gateway.problems import Problem
from client.records import AT_END
from client.wire import encoded


class Options(NamedTuple):
    """The wishes of a request beside the order of its documents."""

    rank_fields: list[str] | None = None
    max_chunks: int | None = None
    truncation: Truncation = AT_END
    whole: bool = False  # a document that is too long is an error
    raw: bool = False  # logits in place of probabilities


class RerankRequest(RequestBody, ABC):
    """The fields of all forms of a rerank request, by the names of Cohere, which the others give aliases."""

    TOO_LONG: ClassVar = 413  # the code where a document is too long and must not be cut

    query: Query
    documents: Documents
    model: Model = None
    top_n: Best = None
    return_documents: Returned = None

    @abstractmethod
    def options(self) -> Options: ...

    @abstractmethod
    def answer(self, ranking: Ranking) -> Any: ...

    @classmethod
    def name_of(cls, field: str) -> str:
        """The name that a client of this form has for the field."""
        return cls.model_fields[field].alias or field

    def texts(self) -> list[Document]:
        """The documents as the model reads them. Raises Problem for one that lacks its text."""
        rank_fields = self.options().rank_fields
        return [self._text(item, index, rank_fields) for index, item in enumerate(self.documents)]

    def ranked(self, ranking: Ranking) -> Iterator[tuple[int, float, bool, Any]]:
        """Index, score, whether it was cut, and the document if it is wanted; the best is the first."""
        for index, score, truncated in ranking.best_first(self.top_n, self.options().raw):
            yield index, score, truncated, self.documents[index] if self.return_documents else None

    def _text(self, item: Given, index: int, rank_fields: list[str] | None) -> Document:
        """Cohere knows strings and ``text``; titles and summaries are ours, and have fields of their own."""
        if isinstance(item, str):
            return Document(summary=item)
        fields = rank_fields or (["title", "summary"] if item.get("text") is None else ["text"])
        found = [name for name in fields if item.get(name) is not None]
        place = f"{self.name_of('documents')}[{index}]"
        if not found:
            names = " or ".join(rank_fields or ("text", "title", "summary"))
            raise Problem(422, f"{place}: an object needs the field {names}")
        if odd := [name for name in found if not isinstance(item[name], str)]:
            raise Problem(422, f"{place}: {odd[0]} must be a string")
        text = "\n".join(item[name] for name in found if name != "title")
        return Document(title=item["title"] if "title" in found else "", summary=text)


class Common(RerankRequest):
    """The form of Cohere, Jina, vLLM, Infinity and llama.cpp: documents and top_n, answered by results."""

    rank_fields: RankFields = None
    max_chunks_per_doc: Annotated[Count | None, Field(description="lowers the gateway's own limit")] = None
    max_tokens_per_doc: Annotated[Count | None, Field(description="of a document that the model reads, at most")] = None
    truncation_side: Annotated[Literal["left", "right"] | None, Field(description="vLLM's: the end to cut")] = None
    raw_scores: Annotated[Flag | None, Field(description="Infinity's: logits instead of probabilities")] = None
    use_activation: Annotated[Flag | None, Field(description="vLLM's: false is logits")] = None
    truncate_prompt_tokens: Annotated[Literal[-1] | None, Field(description="vLLM's; see max_tokens_per_doc")] = None
    priority: Ignored = None
    user: Ignored = None
    request_id: Ignored = None
    return_len: Ignored = None

    def options(self) -> Options:
        truncation = Truncation(self.max_tokens_per_doc, self.truncation_side or "right")
        raw = bool(self.raw_scores) or self.use_activation is False
        return Options(self.rank_fields, self.max_chunks_per_doc, truncation, raw=raw)

    def answer(self, ranking: Ranking) -> ResultsAnswer:
        found = [
            Result(
                index=index,
                relevance_score=score,
                truncated=truncated,
                document={"text": document} if isinstance(document, str) else document,
            )
            for index, score, truncated, document in self.ranked(ranking)
        ]
        return results(found, ranking)


class SelfHosted(Common):
    """The same at the routes of vLLM, Infinity and llama.cpp, where a top_n of 0 is all documents."""

    top_n: Annotated[CountOrAll | None, Field(description="the best only; 0 is all")] = None


class Voyage(RerankRequest):
    """Voyage's form: documents and top_k, answered by data."""

    MARKS: ClassVar = frozenset({"top_k", "truncation"})
    TOO_LONG: ClassVar = 400

    top_n: Best = Field(None, alias="top_k")
    truncation: Annotated[Flag | None, Field(description="false: a document that is too long is an error")] = None

    def options(self) -> Options:
        return Options(whole=self.truncation is False)

    def answer(self, ranking: Ranking) -> DataAnswer:
        items = [
            Item(index=index, relevance_score=score, document=document)
            for index, score, _, document in self.ranked(ranking)
        ]
        return listed(items, ranking)


class Mixedbread(RerankRequest):
    """Mixedbread's form: input and top_k, answered by data."""

    MARKS: ClassVar = frozenset({"input"})

    documents: Documents = Field(alias="input")
    top_n: Best = Field(None, alias="top_k")
    return_documents: Returned = Field(None, alias="return_input")
    rank_fields: RankFields = None
    rewrite_query: Annotated[Literal[False] | None, Field(description="no query is rewritten here")] = None

    def options(self) -> Options:
        return Options(self.rank_fields)

    def answer(self, ranking: Ranking) -> DataAnswer:
        items = [
            Item(object="rank_result", index=index, score=score, input=document)
            for index, score, _, document in self.ranked(ranking)
        ]
        best = len(items) if self.top_n is None else self.top_n
        return listed(items, ranking, top_k=best, return_input=bool(self.return_documents))


class Tei(RerankRequest):
    """The form of Hugging Face's text-embeddings-inference: texts, answered by a list."""

    MARKS: ClassVar = frozenset({"texts"})

    documents: Texts = Field(alias="texts")  # type: ignore[assignment]
    return_documents: Returned = Field(None, alias="return_text")
    raw_scores: Annotated[Flag | None, Field(description="logits instead of probabilities")] = None
    truncate: Annotated[Flag | None, Field(description="false: a text that is too long is an error")] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None, Field(description="the end of a long text that is cut")
    ] = None

    def options(self) -> Options:
        side = "left" if self.truncation_direction in ("left", "Left") else "right"
        return Options(truncation=Truncation(None, side), whole=self.truncate is False, raw=bool(self.raw_scores))

    def answer(self, ranking: Ranking) -> list[Rank]:
        return [
            Rank(index=index, score=score, text=text, truncated=truncated or None)
            for index, score, truncated, text in self.ranked(ranking)
        ]


class Weaviate(RerankRequest):
    """The form of Weaviate's module reranker-transformers, answered by the documents with their scores."""

    MARKS: ClassVar = frozenset({"property"})

    property: Ignored = None

    def options(self) -> Options:
        return Options()

    def answer(self, ranking: Ranking) -> WeaviateAnswer:
        scored = zip(self.documents, ranking.scores.logits, strict=True)  # Weaviate goes by their places
        return WeaviateAnswer(
            query=encoded(self.query).decode(),
            scores=[DocumentScore(document=document, score=score_of(logit, raw=False)) for document, logit in scored],
        )
