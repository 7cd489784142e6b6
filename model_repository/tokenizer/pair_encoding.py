"""The contract between training and serving: text to token ids, pairs to packed rows, and back.

Shapes: N pairs (documents of a request), T token ids of them all, one after the other, R rows, L token
slots a row, S pairs at most a row.
Needs numpy and tokenizers only, because Triton's Python backend loads this file as it lies here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import Unigram

TOKENIZER_FILE = "tokenizer.json"
ENCODING_FILE = "pair_encoding.json"

IntArray = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class EncodingError(ValueError):
    """A text, an artefact or a request that the pair encoding cannot take."""

    exit_code = 2  # of a command that it ends: client.command


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


class DocumentIds(NamedTuple):
    """Documents already tokenised, as a forward index holds them: without any template."""

    token_ids: IntArray  # [T]
    lengths: Counts  # [N]; they sum to T

    @classmethod
    def of(cls, documents: Sequence[IntArray]) -> DocumentIds:
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        return cls(np.concatenate([np.empty(0, dtype=np.int32), *documents]), lengths)


class FlatPairs(NamedTuple):
    """Pairs one after the other; ``EncodedPair`` without an object for each."""

    token_ids: IntArray  # [T]
    lengths: Counts  # [N]; they sum to T
    document_starts: Counts  # [N]
    truncated: npt.NDArray[np.bool_]  # [N]


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
        self._text_ids = self._ids_of_text()
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

    @property
    def id_type(self) -> np.dtype[Any]:
        """The narrowest type that holds every id."""
        return np.min_scalar_type(len(self._text_ids) - 1)

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
        head = self._head(query)
        self.check_count(len(documents))
        pairs = self._pairs(*head, self.document_ids(documents))
        parts = np.split(pairs.token_ids, np.cumsum(pairs.lengths)[:-1])
        ends = zip(parts, pairs.document_starts.tolist(), pairs.truncated.tolist(), strict=True)
        return [EncodedPair(*pair) for pair in ends]

    def document_ids(self, documents: Sequence[Document]) -> DocumentIds:
        """The ids of any number of documents, which ``pairs`` makes pairs of with any query.

        This is what a forward index stores. A document is cut one token after what any query leaves
        room for, so that it still shows that it was longer. Raises EncodingError for a document above
        ``max_document_bytes``.
        """
        texts = []
        for index, document in enumerate(documents):
            text, size = _encodable(" ".join(part for part in document if part))
            self.check_size(f"document {index}", size)
            texts.append(text)
        return DocumentIds.of(self.tokenise(texts))

    def tokenise(self, texts: Sequence[str]) -> list[IntArray]:
        """The ids of each text, a document's title and summary joined by one space, cut as in ``document_ids``."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        most = self._text_budget + 1
        return [np.array(self._as_text(encoding.ids[:most]), dtype=np.int32) for encoding in encodings]

    def pairs(self, query: str, documents: DocumentIds) -> FlatPairs:
        """The pairs of a query with documents that are tokenised, in order. Raises EncodingError for an
        empty query or one above ``max_document_bytes``, no documents or more than ``max_documents``."""
        head = self._head(query)
        self.check_count(len(documents.lengths))
        return self._pairs(*head, documents)

    def pack(self, pairs: Sequence[EncodedPair] | FlatPairs) -> PackedBatch:
        """``pack`` with this artefact's row length, slots and pooling."""
        config = self.config
        return pack(
            pairs,
            config.row_length,
            config.slots_per_row,
            pool_last=config.style == "decoder",
            position_offset=config.position_offset,
        )

    def check_count(self, documents: int) -> None:
        """Raises EncodingError for a number of documents that no request may have."""
        if not 1 <= documents <= self.config.max_documents:
            raise EncodingError(f"{documents} documents; a request takes 1 to {self.config.max_documents}")

    def check_size(self, name: str, size: int) -> None:
        """Raises EncodingError for a text of ``size`` bytes that is too large; ``name`` says which it is."""
        if size > self.config.max_document_bytes:
            raise EncodingError(f"{name} has {size} bytes; at most {self.config.max_document_bytes} are taken")

    def check_ids(self, documents: DocumentIds) -> None:
        """Raises EncodingError for ids that no text becomes: of another vocabulary, or of a control token."""
        known = (documents.token_ids >= 0) & (documents.token_ids < len(self._text_ids))
        known[known] = self._text_ids[documents.token_ids[known]]
        if known.all():
            return
        place = int(known.argmin())
        document = int(np.searchsorted(np.cumsum(documents.lengths), place, side="right"))
        raise EncodingError(
            f"document {document} holds the id {int(documents.token_ids[place])}, which is no token of text in this "
            f"vocabulary: make the ids with the served tokenizer, by PairEncoder.document_ids"
        )

    def _head(self, query: str) -> tuple[IntArray, bool]:
        """All that comes before the document, and whether the query was cut."""
        query, size = _encodable(query)
        self.check_size("the query", size)
        if not query.strip():
            raise EncodingError("the query is empty")
        ids, most = self._ids(query), self.config.max_query_tokens
        head = self._start + self._query_prefix + ids[:most] + self._middle
        return np.array(head, dtype=np.int32), len(ids) > most

    def _pairs(self, head: IntArray, query_cut: bool, documents: DocumentIds) -> FlatPairs:
        budget = self.config.max_pair_tokens - len(head) - len(self._end)
        kept = np.minimum(documents.lengths, budget)
        lengths = len(head) + kept + len(self._end)
        firsts = _firsts(lengths)
        token_ids = np.empty(int(lengths.sum()), dtype=np.int32)
        token_ids[firsts[:, None] + np.arange(len(head))] = head
        token_ids[_spans(firsts + len(head), kept)] = documents.token_ids[_spans(_firsts(documents.lengths), kept)]
        token_ids[firsts + lengths - len(self._end)] = self._end
        starts = np.full(len(lengths), len(head), dtype=np.int64)
        return FlatPairs(token_ids, lengths, starts, query_cut | (documents.lengths > budget))

    def _ids(self, text: str) -> list[int]:
        return self._as_text(self._tokenizer.encode(text, add_special_tokens=False).ids)

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
        for token_id, content in self._control_tokens().items():
            if token_id in {*self._ids(content)}:
                raise EncodingError(f"this tokenizer reads the control token {content!r} out of ordinary text")

    def _control_tokens(self) -> dict[int, str]:
        """By id; without the unknown token, which stands for text, so text may become it."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        return {
            token_id: token.content
            for token_id, token in tokens
            if token.special and token.content != unknown and token_id != self._unknown
        }

    def _ids_of_text(self) -> npt.NDArray[np.bool_]:
        """Of each id up to the highest, whether text may become it."""
        vocabulary = [*self._tokenizer.get_vocab(with_added_tokens=True).values()]
        allowed = np.zeros(max(vocabulary) + 1, dtype=np.bool_)
        allowed[vocabulary] = True
        allowed[[*self._control_tokens()]] = False
        return allowed


def pack(
    pairs: Sequence[EncodedPair] | FlatPairs,
    row_length: int,
    slots_per_row: int,
    *,
    pool_last: bool,
    position_offset: int = 0,
) -> PackedBatch:
    """First-fit decreasing: the longest pair first, each into the first row with room and a slot.

    Raises EncodingError for no pairs and for a pair longer than a row.
    """
    token_ids, lengths, document_starts, _ = pairs if isinstance(pairs, FlatPairs) else _flat(pairs)
    if lengths.size == 0:
        raise EncodingError("no pairs to pack")
    if lengths.max() > row_length:
        raise EncodingError(f"pair {int(lengths.argmax())} has {int(lengths.max())} tokens; a row has {row_length}")
    rows, places, starts = _first_fit(lengths, row_length, slots_per_row)
    shape = (int(rows.max()) + 1, row_length)
    places_T = _spans(rows * row_length + starts, lengths)  # where each token goes, in all rows
    within_T = np.arange(len(token_ids)) - np.repeat(_firsts(lengths), lengths)
    on_document = np.zeros_like(within_T) if pool_last else within_T >= np.repeat(document_starts, lengths)
    columns = (token_ids, on_document, within_T + position_offset, np.repeat(places + 1, lengths))
    arrays_4RL = np.zeros((len(columns), *shape), dtype=np.int32)
    for array, column in zip(arrays_4RL, columns, strict=True):
        array.reshape(-1)[places_T] = column
    input_ids, token_type_ids, position_ids, segment_ids = arrays_4RL
    pool_positions = np.zeros((shape[0], slots_per_row), dtype=np.int32)
    pool_positions[rows, places] = starts + lengths - 1 if pool_last else starts
    slots = (rows * slots_per_row + places).astype(np.int32)
    return PackedBatch(input_ids, token_type_ids, position_ids, segment_ids, pool_positions, slots)


def _first_fit(lengths: Counts, row_length: int, slots_per_row: int) -> tuple[Counts, Counts, Counts]:
    """Of each pair its row, its place among the row's pairs and its first token slot.

    Plain integers: for some hundred rows they are quicker than arrays. The search goes on where it
    stood as long as lengths are the same, since a row without room for one has none for the next.
    """
    sizes = lengths.tolist()
    rows, places, starts = ([0] * len(sizes) for _ in range(3))
    room, used, free = [row_length], [0], [0]  # of each row: slots of tokens left, pairs, first free slot of tokens
    row, last = 0, 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = sizes[index]
        if length != last:
            row, last = 0, length
        while room[row] < length:
            row += 1
            if row == len(room):
                room.append(row_length)
                used.append(0)
                free.append(0)
        rows[index], places[index], starts[index] = row, used[row], free[row]
        used[row] += 1
        free[row] += length
        room[row] = row_length - free[row] if used[row] < slots_per_row else -1
    return np.array(rows), np.array(places), np.array(starts)


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


def _encodable(text: str) -> tuple[str, int]:
    """The text and its bytes in UTF-8. Lone surrogates, which JSON can spell and UTF-8 cannot, become the
    replacement character."""
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, len(text.encode())


def _flat(pairs: Sequence[EncodedPair]) -> FlatPairs:
    token_ids, lengths = DocumentIds.of([pair.token_ids for pair in pairs])
    starts = np.array([pair.document_start for pair in pairs], dtype=np.int64)
    truncated = np.array([pair.truncated for pair in pairs], dtype=np.bool_)
    return FlatPairs(token_ids, lengths, starts, truncated)


def _firsts(lengths: Counts) -> Counts:
    """Where each begins, if they lie one after the other."""
    return np.cumsum(lengths) - lengths


def _spans(starts: Counts, lengths: Counts) -> Counts:
    """All places of spans that begin at ``starts``, one span after the other."""
    places: Counts = np.repeat(starts - _firsts(lengths), lengths) + np.arange(int(lengths.sum()))
    return places
