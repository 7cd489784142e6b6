"""The forms of score requests: pairs of a query and a document."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from client.gateway.fields import Flag, Ignored, Model, RequestBody, Text, Texts
from client.gateway.problems import Problem


class ScoreRequest(RequestBody):
    """vLLM's score API: one text with each of several others, or two lists one by one."""

    queries: Text | Texts
    documents: Text | Texts
    model: Model = None
    use_activation: Annotated[Flag | None, Field(description="false is logits")] = None
    truncation_side: Annotated[Literal["left", "right"] | None, Field(description="the end to cut")] = None
    truncate_prompt_tokens: Annotated[Literal[-1] | None, Field(description="only the model's own limit")] = None
    user: Ignored = None
    priority: Ignored = None
    request_id: Ignored = None

    def pairs(self) -> list[tuple[str, str]]:
        """Query and document. Raises Problem for lists that do not fit together."""
        queries, documents = ([side] if isinstance(side, str) else side for side in (self.queries, self.documents))
        if len(queries) not in (1, len(documents)):
            names = [type(self).model_fields[name].alias or name for name in ("queries", "documents")]
            message = f"{names[0]} has {len(queries)} texts and {names[1]} {len(documents)}: give one, or as many"
            raise Problem(400, message)
        return [(queries[index if len(queries) > 1 else 0], text) for index, text in enumerate(documents)]


class ScoreTexts(ScoreRequest):
    """The same by vLLM's older names."""

    MARKS: ClassVar = frozenset({"text_1", "text_2"})

    queries: Text | Texts = Field(alias="text_1")
    documents: Text | Texts = Field(alias="text_2")
