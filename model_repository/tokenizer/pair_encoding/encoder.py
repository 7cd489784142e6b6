"""Query and documents to pairs of token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from .config import ENCODING_FILE, TOKENIZER_FILE, EncodingError, PairEncodingConfig
from .documents import AT_END, Document, DocumentIds, Truncation
from .packing import FlatPairs, IntArray, PackedBatch, firsts, spans
from .template import make_special, template_of


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
        make_special(tokenizer, config.prompt)
        tokenizer.encode_special_tokens = True
        self._unknown = _unknown_piece(tokenizer)
        self._control_ids = {key for key, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._refuse_control_tokens_in_text()
        self._text_ids = self._ids_of_text()
        self._template = template = template_of(tokenizer, config, self._ids)
        self._longest_document = config.max_pair_tokens - sum(map(len, (template.start, template.middle, template.end)))
        beside_texts = (self._ids(text) for text in (*template.around_query, template.before_document))
        self.template_tokens = config.max_pair_tokens - self._longest_document + sum(map(len, beside_texts))
        if (left := config.max_pair_tokens - self.template_tokens) < config.max_query_tokens:
            raise EncodingError(
                f"max_pair_tokens {config.max_pair_tokens} leaves {left} tokens beside the template's "
                f"{self.template_tokens}, less than max_query_tokens {config.max_query_tokens}"
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
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no other class
            raise EncodingError(f"{path}: not a tokenizer: {error}") from error
        return cls(tokenizer, PairEncodingConfig.load(directory / ENCODING_FILE))

    def encode(self, query: str, documents: Sequence[Document]) -> FlatPairs:
        """One pair per document, in order. Raises EncodingError for an empty query and for a query or document above
        ``max_document_bytes``. Any number of documents is taken: a request's limit is the server's."""
        return self.pairs(query, self.document_ids(documents))

    def document_ids(self, documents: Sequence[Document]) -> DocumentIds:
        """The ids of any number of documents, which ``pairs`` makes pairs of with any query.

        This is what a forward index stores. A document is cut one token after what any query leaves
        room for, so that it still shows that it was longer. Raises EncodingError for a document above
        ``max_document_bytes``.
        """
        texts = []
        for index, document in enumerate(documents):
            text, size = _encodable(document.text)
            self.check_size(f"document {index}", size)
            texts.append(text)
        return DocumentIds.of(self.tokenise(texts))

    def tokenise(self, texts: Sequence[str], side: str = AT_END.side) -> list[IntArray]:
        """The ids of each text (``Document.text``), cut as in ``document_ids``, or on the other side."""
        self._check_side(side)
        texts = [self._template.before_document + text for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        most = self._longest_document + 1
        kept = slice(most) if side == AT_END.side else slice(-most, None)
        return [np.array(self._as_text(encoding.ids[kept]), dtype=np.int32) for encoding in encodings]

    def pairs(self, query: str, documents: DocumentIds, truncation: Truncation = AT_END) -> FlatPairs:
        """The pairs of a query with documents that are tokenised, in order. Raises EncodingError for an empty query
        or one above ``max_document_bytes``, and for a side on which no document can be cut."""
        self._check_side(truncation.side)
        head, query_cut = self._head(query)
        end = self._template.end
        budget = self.config.max_pair_tokens - len(head) - len(end)
        if truncation.max_tokens is not None:
            budget = min(budget, truncation.max_tokens + len(self._ids(self._template.before_document)))
        kept = np.minimum(documents.lengths, budget)
        first = firsts(documents.lengths)
        if truncation.side != AT_END.side:
            first += documents.lengths - kept
        lengths = len(head) + kept + len(end)
        starts = firsts(lengths)
        token_ids = np.empty(int(lengths.sum()), dtype=np.int32)
        token_ids[starts[:, None] + np.arange(len(head))] = head
        token_ids[spans(starts + len(head), kept)] = documents.token_ids[spans(first, kept)]
        token_ids[(starts + lengths - len(end))[:, None] + np.arange(len(end))] = end
        document_starts = np.full(len(lengths), len(head), dtype=np.int64)
        return FlatPairs(token_ids, lengths, document_starts, query_cut | (documents.lengths > budget))

    def pack(self, pairs: FlatPairs) -> PackedBatch:
        """The pairs in rows, by this artefact's row length, slots and pooling. Raises ValueError for no pairs."""
        return self.config.layout.pack(pairs)

    def check_size(self, name: str, size: int) -> None:
        """Raises EncodingError for a text of ``size`` bytes that is too large; ``name`` is what the error calls it."""
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

    def _check_side(self, side: str) -> None:
        if side == AT_END.side:
            return
        if side != "left":
            raise EncodingError(f"the side to cut is 'left' or 'right', not {side[:20]!r}")
        if self._template.before_document:
            raise EncodingError("only right ends are cut: the prompt has text in one part with the document")

    def _head(self, query: str) -> tuple[IntArray, bool]:
        """All that comes before the document, and whether the query was cut."""
        query, size = _encodable(query)
        self.check_size("the query", size)
        if not query.strip():
            raise EncodingError("the query is empty")
        ids, query_cut = self._query_ids(query)
        return np.array(self._template.start + ids + self._template.middle, dtype=np.int32), query_cut

    def _query_ids(self, query: str) -> tuple[list[int], bool]:
        """The query as one text with what the prompt puts around it, and whether it was cut.

        A query that is cut is tokenised apart from what follows it.
        """
        before, after = self._template.around_query
        ids, after_ids = self._ids(before + query + after), self._ids(after)
        most = len(self._ids(before)) + self.config.max_query_tokens
        if len(ids) <= most + len(after_ids):
            return ids, False
        return self._ids(before + query)[:most] + after_ids, True

    def _ids(self, text: str) -> list[int]:
        return self._as_text(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _as_text(self, ids: list[int]) -> list[int]:
        if self._unknown is None:
            return ids
        return [self._unknown if token_id in self._control_ids else token_id for token_id in ids]

    def _refuse_control_tokens_in_text(self) -> None:
        for token_id, content in self._control_tokens().items():
            if token_id in {*self._ids(content)}:
                raise EncodingError(f"this tokenizer reads the control token {content!r} out of ordinary text")

    def _control_tokens(self) -> dict[int, str]:
        """The control tokens by id. The unknown token is left out: it stands for text, and text may become it."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        return {
            token_id: token.content
            for token_id, token in tokens
            if token.special and token.content != unknown and token_id != self._unknown
        }

    def _ids_of_text(self) -> npt.NDArray[np.bool_]:
        """Whether text may become the id, for each id up to the highest."""
        vocabulary = [*self._tokenizer.get_vocab(with_added_tokens=True).values()]
        allowed = np.zeros(max(vocabulary) + 1, dtype=np.bool_)
        allowed[vocabulary] = True
        allowed[[*self._control_tokens()]] = False
        return allowed


def _unknown_piece(tokenizer: Tokenizer) -> int | None:
    """The unknown token of a Unigram model (XLM-R, ALBERT), whose vocabulary has the control tokens among its pieces
    of text; None for other models."""
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
