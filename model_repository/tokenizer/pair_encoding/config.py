"""``pair_encoding.json``: everything about encoding that is data of an artefact."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .packing import Layout

TOKENIZER_FILE = "tokenizer.json"
ENCODING_FILE = "pair_encoding.json"
QUERY, DOCUMENT = "{query}", "{document}"  # in a prompt


class EncodingError(ValueError):
    """A text, an artefact or a request that the pair encoding cannot take."""

    exit_code = 2  # of a command that ends with it


@dataclass(frozen=True)
class PairEncodingConfig:
    """How one artefact encodes.

    ``style`` is ``encoder`` (``[CLS] query [SEP] document [SEP]``, pooled at the first token) or
    ``decoder`` (``query_prefix query document_prefix document </s>``, pooled at the last token).
    ``start_token`` is the first token of a pair (BOS for a decoder) or null, ``end_token`` the last.
    RoBERTa and its kin have two ``separators`` in the middle and begin at a ``position_offset``.
    A decoder's ``prompt`` stands for its tokens and prefixes. It is a list of parts, which are tokenised one by one.
    One part holds ``{query}`` and a later one ends with ``{document}``. What else these two hold is tokenised as one
    text with the query or the document. The other parts are trusted: they may spell control tokens.
    The document is ``title`` and ``summary`` with one space between, cut at its end by tokens;
    the query is cut only above ``max_query_tokens``.
    """

    style: str
    start_token: str | None
    end_token: str | None
    query_prefix: str = ""
    document_prefix: str = ""
    max_query_tokens: int = 64
    max_pair_tokens: int = 256
    row_length: int = 256
    slots_per_row: int = 16
    max_documents: int = 1000
    max_document_bytes: int = 1_000_000
    position_offset: int = 0
    separators: int = 1
    prompt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.style not in ("encoder", "decoder"):
            raise EncodingError(f"style must be 'encoder' or 'decoder', not {self.style!r}")
        if self.style == "encoder" and (self.start_token is None or self.query_prefix or self.document_prefix):
            raise EncodingError("the encoder style needs a start_token and takes no prefixes")
        object.__setattr__(self, "prompt", tuple(self.prompt))  # JSON has lists
        if self.prompt:
            self._check_prompt()
        elif self.end_token is None:
            raise EncodingError("without a prompt there must be an end_token")
        sizes = ("max_query_tokens", "max_pair_tokens", "row_length", "slots_per_row", "max_documents", "separators")
        for name, least in (*((size, 1) for size in sizes), ("position_offset", 0)):
            if getattr(self, name) < least:
                raise EncodingError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_pair_tokens > self.row_length:
            raise EncodingError(
                f"max_pair_tokens {self.max_pair_tokens} is above row_length {self.row_length}: a pair must fit a row"
            )

    def _check_prompt(self) -> None:
        if self.style == "encoder" or self.start_token or self.end_token or self.query_prefix or self.document_prefix:
            raise EncodingError("a prompt is a decoder's, and says all of a pair: it takes no tokens and no prefixes")
        for place in (QUERY, DOCUMENT):
            if (count := sum(part.count(place) for part in self.prompt)) != 1:
                raise EncodingError(f"the prompt must have {place} once, and has it {count} times: {[*self.prompt]}")
        if self.place_of(QUERY) >= self.place_of(DOCUMENT):
            raise EncodingError(f"{QUERY} must come before {DOCUMENT}, in another part of the prompt: {[*self.prompt]}")
        if not self.prompt[self.place_of(DOCUMENT)].endswith(DOCUMENT):
            raise EncodingError(f"what follows {DOCUMENT} must be another part of the prompt: {[*self.prompt]}")

    def place_of(self, text: str) -> int:
        """The index of the part of the prompt that holds ``text``."""
        return next(place for place, part in enumerate(self.prompt) if text in part)

    @property
    def layout(self) -> Layout:
        return Layout(self.row_length, self.slots_per_row, self.style == "decoder", self.position_offset)

    @classmethod
    def load(cls, path: Path) -> PairEncodingConfig:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EncodingError(
                f"{path}: no such file; every checkpoint of ours has one beside its tokenizer"
            ) from None
        except (ValueError, RecursionError) as error:
            raise EncodingError(f"{path}: not JSON: {error}") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise EncodingError(f"{path}: unknown settings; this version knows {sorted(known)}")
        try:
            return cls(**values)
        except (TypeError, EncodingError) as error:
            raise EncodingError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        values = asdict(self)
        if not self.prompt:  # most have none, and older releases do not know the setting
            del values["prompt"]
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def encoding_hash(directory: str | Path) -> str:
    """Identifies how an artefact encodes: SHA-256 over its tokenizer and its encoding settings."""
    digest = hashlib.sha256()
    for name in (TOKENIZER_FILE, ENCODING_FILE):
        digest.update((Path(directory) / name).read_bytes())
    return digest.hexdigest()
