"""The fields of requests: what they may hold, what they are called, and what becomes of unknown ones."""

from __future__ import annotations

import difflib
import json
import re
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from client.wire import encoded

LARGEST, DEEPEST = 10**9, 50
# A text may stand in the answer again, which cannot hold the lone surrogates that JSON can spell.
Text = Annotated[str, AfterValidator(lambda text: encoded(text).decode())]
QUERY_EXAMPLE, TEXTS_EXAMPLE = "mend a cheap bike", ["Affordable bicycle repair", "Garden bridges"]
Query = Annotated[str, Field(min_length=1, examples=[QUERY_EXAMPLE])]
Texts = Annotated[list[Text], Field(min_length=1, examples=[TEXTS_EXAMPLE])]
Model = Annotated[str | None, Field(description="a name of /v1/models; the first of them if there is none")]


def _fields(fields: dict[str, Any]) -> Any:
    """An object of any fields, in which text is as in ``Text``."""
    layer: list[Any] = [fields]
    for _ in range(DEEPEST):
        inner = [[*one.values()] if isinstance(one, dict) else one for one in layer]
        layer = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not layer:
            return json.loads(encoded(json.dumps(fields, ensure_ascii=False)))
    raise ValueError(f"an object may be nested {DEEPEST} deep")


def _number(given: Any) -> Any:
    return int(given) if isinstance(given, str) and re.fullmatch("[0-9]{1,9}", given) else given


def _flag(given: Any) -> Any:
    return {"true": True, "false": False}.get(given, given) if isinstance(given, str) else given


def _numbers(least: int) -> WithJsonSchema:
    """Numbers, which some clients send as strings."""
    first = "0-9" if not least else "1-9"
    text = {"type": "string", "pattern": f"^[{first}][0-9]{{0,8}}$"}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": least, "maximum": LARGEST}, text]})


Given = Text | Annotated[dict[str, Any], AfterValidator(_fields)]
Documents = Annotated[list[Given], Field(min_length=1, examples=[TEXTS_EXAMPLE])]
Count = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_number), _numbers(1)]
CountOrAll = Annotated[int, Field(ge=0, le=LARGEST), BeforeValidator(_number), _numbers(0)]
Flag = Annotated[
    bool,
    BeforeValidator(_flag),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["true", "false"]}]}),
]
Ignored = Annotated[Any, Field(description="taken, and without effect here")]
Best = Annotated[Count | None, Field(description="the best only")]
Returned = Annotated[Flag | None, Field(description="the answer has the documents as they came")]
RankFields = Annotated[list[Text] | None, Field(description="of objects; otherwise text, or title and summary")]


class RequestBody(BaseModel):
    """A request. Fields of no effect that clients are known to send are named; any other is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    MARKS: ClassVar[frozenset[str]] = frozenset()  # fields that no other form has

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        names = {field.alias or name for name, field in cls.model_fields.items()}
        if isinstance(given, dict) and (unknown := given.keys() - names):
            name = min(unknown)
            near = difflib.get_close_matches(name, sorted(names), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
            message = f"{encoded(name[:40]).decode()}: there is no such field: {hint}"
            raise PydanticCustomError("unknown_field", "{message}", {"message": message})
        return given


def form_of(*forms: type[RequestBody]) -> WrapValidator:
    """Reads a request in the first of the forms that it has a mark of, or else in the last one."""

    def read(given: Any, _: Any) -> RequestBody:
        names = given.keys() if isinstance(given, dict) else set()
        return next((form for form in forms if form.MARKS & names), forms[-1]).model_validate(given)

    return WrapValidator(read)
