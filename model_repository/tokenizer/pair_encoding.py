"""The contract between training and serving: text to token ids, pairs to packed rows, and back.

Shapes: N pairs (documents of a request), R rows, L token slots a row, S pairs at most a row.
Needs numpy and tokenizers only, because Triton's Python backend loads this file as it lies here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import Unigram

TOKENIZER_FILE = "tokenizer.json"
ENCODING_FILE = "pair_encoding.json"

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class EncodingError(ValueError):
    """A text, an artefact or a request that the pair encoding cannot take."""


class Document(NamedTuple):
    """What the ranker reads of a document; either part may be empty."""

    title: str
    summary: str


@dataclass(frozen=True)
class EncodedPair:
    """One query-document pair as token ids.

    ``document_start`` is the index of the first token of the document's side, which is where
    the second token type begins (encoder) and where continued pre-training starts to pay loss.
    """

    token_ids: IntArray
    document_start: int
    truncated: bool


class PackedBatch(NamedTuple):
    """Pairs in rows, all int32. Slot ``r * S + s`` of ``slots`` is pair ``s`` of row ``r``."""

    input_ids: IntArray  # [R, L]
    token_type_ids: IntArray  # [R, L], 1 on the document's side (encoder style only)
    position_ids: IntArray  # [R, L], restart in each pair at the offset, 0 in empty slots
    segment_ids: IntArray  # [R, L], 1.. within a row, 0 = empty slot
    pool_positions: IntArray  # [R, S], the token that stands for the pair, 0 where no pair is
    slots: IntArray  # [N], in the caller's order


@dataclass(frozen=True)
class PairEncodingConfig:
    """``pair_encoding.json``: everything about encoding that is data of the artefact.

    ``style`` is ``encoder`` (``[CLS] query [SEP] document [SEP]``, pooled at the first token) or
    ``decoder`` (``query_prefix query document_prefix document </s>``, pooled at the last token).
    ``start_token`` is the first token of a pair (BOS for a decoder) or null, ``end_token`` the last.
    RoBERTa and its kin have two ``separators`` in the middle and begin at a ``position_offset``.
    The document is ``title`` and ``summary`` with one space between, cut at its end by tokens;
    the query is cut only above ``max_query_tokens``.
    """

    style: str
    start_token: str | None
    end_token: str
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

    def __post_init__(self) -> None:
        if self.style not in ("encoder", "decoder"):
            raise EncodingError(f"style must be 'encoder' or 'decoder', not {self.style!r}")
        if self.style == "encoder" and (self.start_token is None or self.query_prefix or self.document_prefix):
            raise EncodingError("the encoder style needs a start_token and takes no prefixes")
        sizes = ("max_query_tokens", "max_pair_tokens", "row_length", "slots_per_row", "max_documents", "separators")
        for name, least in (*((size, 1) for size in sizes), ("position_offset", 0)):
            if getattr(self, name) < least:
                raise EncodingError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_pair_tokens > self.row_length:
            raise EncodingError(
                f"max_pair_tokens {self.max_pair_tokens} is above row_length {self.row_length}: a pair must fit a row"
            )

    @classmethod
    def load(cls, path: Path) -> PairEncodingConfig:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EncodingError(
                f"{path}: no such file; every checkpoint of ours has one beside its tokenizer"
            ) from None
        except json.JSONDecodeError as error:
            raise EncodingError(f"{path}: not JSON: {error}") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise EncodingError(f"{path}: unknown settings; this version knows {sorted(known)}")
        try:
            return cls(**values)
        except (TypeError, EncodingError) as error:
            raise EncodingError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class PairEncoder:
    """Query, title and summary to token ids, by the tokenizer and the settings of one artefact.

    Text never becomes a control token, whatever it spells: where a SentencePiece vocabulary reads one
    out of text it becomes the unknown token, and any other tokenizer that does so is refused when the
    encoder is made.
    """

    def __init__(self, tokenizer: Tokenizer, config: PairEncodingConfig) -> None:
        self.config = config
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._unknown = _unknown_piece(tokenizer)
        self._control_ids = {key for key, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._refuse_control_tokens_in_text()
        self._start = [] if config.start_token is None else [self._control_id(config.start_token)]
        self._end = [self._control_id(config.end_token)]
        self._query_prefix = self._ids(config.query_prefix)
        self._middle = self._end * config.separators if config.style == "encoder" else self._ids(config.document_prefix)
        fixed = len(self._start) + len(self._query_prefix) + len(self._middle) + len(self._end)
        self._text_budget = config.max_pair_tokens - fixed
        if self._text_budget < config.max_query_tokens:
            raise EncodingError(
                f"max_pair_tokens {config.max_pair_tokens} leaves {self._text_budget} tokens beside the template's "
                f"{fixed}, less than max_query_tokens {config.max_query_tokens}"
            )

    @classmethod
    def load(cls, directory: str | Path) -> PairEncoder:
        """The encoder of a checkpoint directory: ``tokenizer.json`` and ``pair_encoding.json``."""
        directory = Path(directory)
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise EncodingError(f"{path}: no such file")
        return cls(Tokenizer.from_file(str(path)), PairEncodingConfig.load(directory / ENCODING_FILE))

    def encode(self, query: str, documents: Sequence[Document]) -> list[EncodedPair]:
        """One pair per document, in order. Raises EncodingError for an empty query, no documents,
        more than ``max_documents``, or a query or document above ``max_document_bytes``."""
        query = self._checked("the query", query)
        if not query.strip():
            raise EncodingError("the query is empty")
        if not 1 <= len(documents) <= self.config.max_documents:
            raise EncodingError(f"{len(documents)} documents; a request takes 1 to {self.config.max_documents}")
        texts = [
            self._checked(f"document {index}", " ".join(part for part in document if part))
            for index, document in enumerate(documents)
        ]
        all_query_ids = self._ids(query)
        query_ids = all_query_ids[: self.config.max_query_tokens]
        head = self._start + self._query_prefix + query_ids + self._middle
        budget = self._text_budget - len(query_ids)
        query_cut = len(all_query_ids) > len(query_ids)
        pairs = []
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = self._as_text(encoding.ids)
            tokens = np.asarray(head + ids[:budget] + self._end, dtype=np.int32)
            pairs.append(EncodedPair(tokens, len(head), query_cut or len(ids) > budget))
        return pairs

    def pack(self, pairs: Sequence[EncodedPair]) -> PackedBatch:
        """``pack`` with this artefact's row length, slots and pooling."""
        config = self.config
        return pack(
            pairs,
            config.row_length,
            config.slots_per_row,
            pool_last=config.style == "decoder",
            position_offset=config.position_offset,
        )

    def _checked(self, name: str, text: str) -> str:
        text = _encodable(text)
        size, most = len(text.encode("utf-8")), self.config.max_document_bytes
        if size > most:
            raise EncodingError(f"{name} has {size} bytes; at most {most} are taken")
        return text

    def _ids(self, text: str) -> list[int]:
        return self._as_text(self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids)

    def _as_text(self, ids: list[int]) -> list[int]:
        if self._unknown is None:
            return ids
        return [self._unknown if token_id in self._control_ids else token_id for token_id in ids]

    def _control_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise EncodingError(f"the tokenizer has no token {token!r}, which {ENCODING_FILE} names")
        return int(token_id)

    def _refuse_control_tokens_in_text(self) -> None:
        unknown = getattr(self._tokenizer.model, "unk_token", None)  # stands for text, so text may become it
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            if token.special and token.content != unknown and token_id in {*self._ids(token.content)} - {self._unknown}:
                raise EncodingError(f"this tokenizer reads the control token {token.content!r} out of ordinary text")


def pack(
    pairs: Sequence[EncodedPair], row_length: int, slots_per_row: int, *, pool_last: bool, position_offset: int = 0
) -> PackedBatch:
    """First-fit decreasing: the longest pair first, each into the first row with room and a slot.

    Raises EncodingError for no pairs and for a pair longer than a row.
    """
    lengths = np.array([len(pair.token_ids) for pair in pairs], dtype=np.int64)
    if lengths.size == 0:
        raise EncodingError("no pairs to pack")
    if lengths.max() > row_length:
        raise EncodingError(f"pair {int(lengths.argmax())} has {int(lengths.max())} tokens; a row has {row_length}")
    rows, places = _first_fit(lengths, row_length, slots_per_row)
    shape = (int(rows.max()) + 1, row_length)
    input_ids, token_type_ids, position_ids, segment_ids = (np.zeros(shape, dtype=np.int32) for _ in range(4))
    pool_positions = np.zeros((shape[0], slots_per_row), dtype=np.int32)
    slots = (rows * slots_per_row + places).astype(np.int32)
    batch = PackedBatch(input_ids, token_type_ids, position_ids, segment_ids, pool_positions, slots)
    starts = np.zeros(shape[0], dtype=np.int64)
    for index in np.lexsort((places, rows)):
        row, place, length = rows[index], places[index], lengths[index]
        start = starts[row]
        span = slice(start, start + length)
        batch.input_ids[row, span] = pairs[index].token_ids
        if not pool_last:
            batch.token_type_ids[row, start + pairs[index].document_start : start + length] = 1
        batch.position_ids[row, span] = np.arange(position_offset, position_offset + length)
        batch.segment_ids[row, span] = place + 1
        batch.pool_positions[row, place] = start + length - 1 if pool_last else start
        starts[row] += length
    return batch


def _first_fit(lengths: npt.NDArray[np.int64], row_length: int, slots_per_row: int) -> tuple[IntArray, IntArray]:
    rows = np.zeros(len(lengths), dtype=np.int32)
    places = np.zeros(len(lengths), dtype=np.int32)
    room = np.full(len(lengths), row_length, dtype=np.int64)
    used = np.zeros(len(lengths), dtype=np.int32)
    for index in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(room >= lengths[index]))
        rows[index], places[index] = row, used[row]
        room[row] -= lengths[index]
        used[row] += 1
        if used[row] == slots_per_row:
            room[row] = -1
    return rows, places


def unpack(scores: FloatArray, slots: IntArray) -> FloatArray:
    """``scores[R, S]`` and ``slots[N]`` to scores[N] in the caller's order."""
    return np.asarray(scores).reshape(-1)[slots]


def encoding_hash(directory: str | Path) -> str:
    """Identifies how an artefact encodes: SHA-256 over its tokenizer and its encoding settings."""
    digest = hashlib.sha256()
    for name in (TOKENIZER_FILE, ENCODING_FILE):
        digest.update((Path(directory) / name).read_bytes())
    return digest.hexdigest()


def _unknown_piece(tokenizer: Tokenizer) -> int | None:
    """Of a Unigram model (XLM-R, ALBERT), whose vocabulary has the control tokens among its pieces of text."""
    if not isinstance(tokenizer.model, Unigram):
        return None
    unknown: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
    return unknown


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON can spell and UTF-8 cannot, become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
