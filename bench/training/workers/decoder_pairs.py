"""A decoder's pairs as token ids, for the peers that read them tokenised: the same ids as our pair encoder's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.training.job import Group


@dataclass(frozen=True)
class Pair:
    """``token_ids``, of which those from ``document_start`` on are the document and the end token."""

    token_ids: list[int]
    document_start: int


def pairs_of(group: Group, tokenizer: Any, checkpoint: str) -> Iterator[Pair]:
    """The template of ``pair_encoding.json``; the document is cut where the pair would exceed its limit."""
    encoding = json.loads((Path(checkpoint) / "pair_encoding.json").read_text(encoding="utf-8"))

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    start, end = (
        [] if token is None else [tokenizer.convert_tokens_to_ids(token)]
        for token in (encoding["start_token"], encoding["end_token"])
    )
    query = ids(group.query)[: encoding["max_query_tokens"]]
    head = start + ids(encoding["query_prefix"]) + query + ids(encoding["document_prefix"])
    room = encoding["max_pair_tokens"] - len(head) - len(end)
    for text in group.documents:
        yield Pair(head + ids(text)[:room] + end, len(head))
