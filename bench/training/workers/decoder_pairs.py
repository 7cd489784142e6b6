"""A decoder's pairs as token ids, for the peers that read them tokenised: the same ids as our pair encoder's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.training.job import Group

QUERY, DOCUMENT = "{query}", "{document}"


@dataclass(frozen=True)
class Pair:
    """``token_ids``, of which those from ``document_start`` on are the document and the end token."""

    token_ids: list[int]
    document_start: int


def pairs_of(group: Group, tokenizer: Any, checkpoint: str) -> Iterator[Pair]:
    """The template of ``pair_encoding.json``, whose parts are tokenised one by one; the document is cut where the pair
    would exceed its limit."""
    encoding = json.loads((Path(checkpoint) / "pair_encoding.json").read_text(encoding="utf-8"))
    parts = parts_of(encoding)
    asked, read = (next(place for place, part in enumerate(parts) if text in part) for text in (QUERY, DOCUMENT))

    def ids(*texts: str) -> list[int]:
        return [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    before, after = parts[asked].split(QUERY)
    query, most = ids(before + group.query + after), len(ids(before)) + encoding["max_query_tokens"]
    if len(query) > most + len(ids(after)):
        query = ids(before + group.query)[:most] + ids(after)
    head, end = ids(*parts[:asked]) + query + ids(*parts[asked + 1 : read]), ids(*parts[read + 1 :])
    room = encoding["max_pair_tokens"] - len(head) - len(end)
    for text in group.documents:
        yield Pair(head + ids(parts[read].removesuffix(DOCUMENT) + text)[:room] + end, len(head))


def parts_of(encoding: dict[str, Any]) -> list[str]:
    """The prompt, or the parts that stand for one."""
    names = ("start_token", "query_prefix", QUERY, "document_prefix", DOCUMENT, "end_token")
    return encoding.get("prompt") or [part for name in names if (part := encoding.get(name, name))]
