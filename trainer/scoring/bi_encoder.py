"""A bi-encoder as a weak teacher: the score of a pair is the cosine of the query's vector and the document's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import FloatArray
from trainer.checkpoints.load import NO_CODE, CheckpointError, body_of, reading, require_checkpoint, to_device
from trainer.data.records import DataError, QueryGroup
from trainer.scoring.checkpoint import PRECISIONS, ScoringArguments, named_scores, processes_together

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OURS = "SentenceTransformer"  # the library's name for bi-encoders, among its kinds of models


class BiEncoder:
    """Vectors of texts as float32 ``[n, H]``, each of length 1.

    A forward pass has at most ``rows_per_pass`` texts, which are of about the same length. What the checkpoint says of
    pooling, of prompts and of the text that it reads is the library's to follow.
    """

    identity = None  # the checkpoint's files say which it is

    def __init__(self, name: str, model: SentenceTransformer, rows_per_pass: int) -> None:
        self.name, self._model, self._rows_per_pass = Path(name).name, model, rows_per_pass

    @classmethod
    def load(cls, name: str, arguments: ScoringArguments, max_tokens: int | None = None) -> BiEncoder:
        """The model of a directory or a hub id, on this process's accelerator if there is one.

        Raises CheckpointError for what is no bi-encoder, DataError for more ``max_tokens`` than it reads.
        """
        processes_together()  # each chooses its GPU
        require_checkpoint(body_of(name))
        with reading(name, "a bi-encoder"):
            kind = _kind_of(name)
        if kind != OURS:
            raise CheckpointError(f"{name}: {kind}, not a bi-encoder (what scores pairs goes with --model)")
        with reading(name, "a bi-encoder"):
            model = _loaded(name)
        _limit(model, name, max_tokens)
        return cls(name, to_device(model).to(PRECISIONS[arguments.precision]), arguments.rows_per_batch)

    def queries(self, texts: Sequence[str]) -> FloatArray:
        return self._vectors(self._model.encode_query, texts, lambda places: None)

    def documents(self, texts: Sequence[str], done: Callable[[Sequence[int]], object]) -> FloatArray:
        """``done`` is told the places of the texts of each forward pass."""
        return self._vectors(self._model.encode_document, texts, done)

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, cosine)`` of every pair, in the order of the groups; each text is encoded once."""
        pairs = Counter(document.text for group in groups for document in group.documents)
        texts = list(pairs)
        queries_BH = self.queries([group.query for group in groups])
        documents_NH = self.documents(texts, lambda places: bar.update(sum(pairs[texts[place]] for place in places)))
        places = {text: place for place, text in enumerate(texts)}
        for query_H, group in zip(queries_BH, groups, strict=True):
            ids = [(group.query_id, document.doc_id) for document in group.documents]
            own_NH = documents_NH[[places[document.text] for document in group.documents]]
            yield from named_scores(self.name, ids, (own_NH @ query_H).tolist())

    def _vectors(
        self, encode: Callable[..., torch.Tensor], texts: Sequence[str], done: Callable[[Sequence[int]], object]
    ) -> FloatArray:
        found = []
        longest_first = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for at in range(0, len(texts), self._rows_per_pass):
            places = longest_first[at : at + self._rows_per_pass]
            batch = [texts[place] for place in places]
            vectors = encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)
            found.append(normalize(vectors.float(), dim=-1).cpu().numpy())
            done(places)
        vectors_NH: FloatArray = np.concatenate(found)[np.argsort(longest_first)]
        return vectors_NH


def _kind_of(name: str) -> str:
    from sentence_transformers.util.file_io import load_file_path

    if load_file_path(name, "modules.json") is None:
        return "a model without sentence-transformers' modules.json"
    path = load_file_path(name, "config_sentence_transformers.json")
    settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return str(settings.get("model_type", OURS))  # older ones do not say


def _loaded(name: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # not before: it takes seconds, and few commands need it

    settings = {"dtype": torch.float32, "use_safetensors": True}
    model = SentenceTransformer(name, device="cpu", model_kwargs=settings, **NO_CODE).eval()
    model.encode("a text", show_progress_bar=False)  # some read pictures only
    return model


def _limit(model: SentenceTransformer, name: str, max_tokens: int | None) -> None:
    if max_tokens is None:
        return
    most = model.max_seq_length or max(3, max_tokens)
    if not 3 <= max_tokens <= most:  # two of them are not the text's
        raise DataError(f"--max_tokens must be 3 to {most}, which is what {name} reads, not {max_tokens}")
    model.max_seq_length = max_tokens
