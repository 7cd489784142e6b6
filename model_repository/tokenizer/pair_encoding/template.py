"""The template of a pair: all that it has beside its two texts, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from tokenizers import Tokenizer

from .config import DOCUMENT, ENCODING_FILE, QUERY, EncodingError, PairEncodingConfig

Ids = Callable[[str], list[int]]  # of a text, whose control tokens are text


class Template(NamedTuple):
    """A pair but for its texts: token ids, and texts that are tokenised as one with the query or the document."""

    start: list[int]
    around_query: tuple[str, str]
    middle: list[int]
    before_document: str
    end: list[int]


def template_of(tokenizer: Tokenizer, config: PairEncodingConfig, ids: Ids) -> Template:
    """Raises EncodingError for a control token that the tokenizer lacks, or that a prompt has beside a text."""
    if config.prompt:
        return _of_prompt(tokenizer, config, ids)
    start = [] if config.start_token is None else [_control_id(tokenizer, config.start_token)]
    end = [_control_id(tokenizer, str(config.end_token))]
    middle = end * config.separators if config.style == "encoder" else ids(config.document_prefix)
    return Template(start + ids(config.query_prefix), ("", ""), middle, "", end)


def make_special(tokenizer: Tokenizer, prompt: Sequence[str]) -> None:
    """Let no text spell an added token that the prompt uses. Some are not special, such as Qwen3's ``<think>``."""
    added = tokenizer.get_added_tokens_decoder().values()
    # White space among the added tokens, such as Gemma's line ends, is text.
    used = [token for token in added if token.content.strip() and any(token.content in part for part in prompt)]
    for token in used:
        token.special = True
    tokenizer.add_special_tokens(used)


def _of_prompt(tokenizer: Tokenizer, config: PairEncodingConfig, ids: Ids) -> Template:
    prompt, query, document = config.prompt, config.place_of(QUERY), config.place_of(DOCUMENT)
    before_query, after_query = prompt[query].split(QUERY)
    before_document = prompt[document].removesuffix(DOCUMENT)
    for text in (before_query, after_query, before_document):
        if ids(text) != _trusted_ids(tokenizer, text):
            raise EncodingError(f"{text!r} of the prompt spells a control token: it must be in a part without a text")
    parts = (prompt[:query], prompt[query + 1 : document], prompt[document + 1 :])
    start, middle, end = ([*chain.from_iterable(_trusted_ids(tokenizer, text) for text in part)] for part in parts)
    return Template(start, (before_query, after_query), middle, before_document, end)


def _trusted_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a template's text, in which control tokens are such."""
    tokenizer.encode_special_tokens = False
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    return ids


def _control_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise EncodingError(f"the tokenizer has no token {token!r}, which {ENCODING_FILE} names")
    return int(token_id)
