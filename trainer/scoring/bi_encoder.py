"""A bi-encoder as a weak teacher: the score of a pair is the similarity of the query's vectors and the document's.

By cosine each text has one vector. By MaxSim each of its tokens has one, the state behind the last layer. For each
token of the query it takes the cosine with the most similar token of the document, and the score is their mean. Source:
ColBERT, arXiv 2004.12832, which is trained for it and takes the sum.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import FloatArray
from trainer.checkpoints.load import NO_CODE, CheckpointError, body_of, reading, require_checkpoint, to_device
from trainer.data.records import DataError, QueryGroup
from trainer.scoring.checkpoint import PRECISIONS, ScoringArguments, named_scores, processes_together

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Similarity = Literal["cosine", "maxsim"]

OURS = "SentenceTransformer"  # the library's name for bi-encoders, among its kinds of models


class BiEncoder:
    """Similarities of queries and documents, and their vectors.

    A forward pass has at most ``rows_per_pass`` texts, which are of about the same length. What the checkpoint says of
    pooling, of prompts and of the text that it reads is the library's to follow.
    """

    identity = None  # the checkpoint's files say which it is

    def __init__(self, name: str, model: SentenceTransformer, rows_per_pass: int, similarity: Similarity) -> None:
        self.name = Path(name).name if similarity == "cosine" else f"{Path(name).name} {similarity}"
        self._model, self._rows_per_pass, self._similarity = model, rows_per_pass, similarity

    @classmethod
    def load(
        cls, name: str, arguments: ScoringArguments, max_tokens: int | None = None, similarity: Similarity = "cosine"
    ) -> BiEncoder:
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
            known = model.encode("a text", output_value=None, show_progress_bar=False)  # some read pictures only
        if similarity == "maxsim" and "token_embeddings" not in known:
            raise CheckpointError(f"{name}: it has no states of tokens, which --similarity maxsim compares")
        _limit(model, name, max_tokens)
        return cls(name, to_device(model).to(PRECISIONS[arguments.precision]), arguments.rows_per_batch, similarity)

    def queries(self, texts: Sequence[str]) -> FloatArray:
        """Vectors by cosine, float32 ``[n, H]``, each of length 1."""
        return torch.stack(self._encoded(self._model.encode_query, texts, lambda places: None)).numpy()

    def documents(self, texts: Sequence[str], done: Callable[[Sequence[int]], object]) -> FloatArray:
        """The same; ``done`` is told the places of the texts of each forward pass."""
        return torch.stack(self._encoded(self._model.encode_document, texts, done)).numpy()

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, similarity)`` of every pair, in the order of the groups; each text is encoded once."""
        pairs = Counter(document.text for group in groups for document in group.documents)
        texts = list(pairs)
        queries = self._encoded(self._model.encode_query, [group.query for group in groups], lambda places: None)
        encoded = self._encoded(
            self._model.encode_document,
            texts,
            lambda places: bar.update(sum(pairs[texts[place]] for place in places)),
        )
        documents = dict(zip(texts, encoded, strict=True))
        for query, group in zip(queries, groups, strict=True):
            ids = [(group.query_id, document.doc_id) for document in group.documents]
            own = [documents[document.text] for document in group.documents]
            yield from named_scores(self.name, ids, self._similarities(query, own).tolist())

    def _encoded(
        self, encode: Callable[..., Any], texts: Sequence[str], done: Callable[[Sequence[int]], object]
    ) -> list[Tensor]:
        """For each text a vector [H], float32, or by MaxSim one for each token [T, H], float16 since they are many."""
        output = {"output_value": None} if self._similarity == "maxsim" else {"convert_to_tensor": True}
        longest_first = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        found: list[Tensor] = []
        for at in range(0, len(texts), self._rows_per_pass):
            places = longest_first[at : at + self._rows_per_pass]
            batch = [texts[place] for place in places]
            encoded = encode(batch, batch_size=len(batch), show_progress_bar=False, **output)
            found += (
                _token_vectors(encoded) if self._similarity == "maxsim" else normalize(encoded.float(), dim=-1).cpu()
            )
            done(places)
        in_order = dict(zip(longest_first, found, strict=True))
        return [in_order[place] for place in range(len(texts))]

    def _similarities(self, query: Tensor, documents: Sequence[Tensor]) -> Tensor:
        if self._similarity == "cosine":
            return torch.stack(list(documents)) @ query
        from sentence_transformers.util import mean_maxsim

        scores = mean_maxsim([query.float()], [document.float() for document in documents])[0]
        empty = torch.tensor([not len(document) for document in documents])  # of texts without a token
        return scores.masked_fill(empty, 0.0)  # as their cosine


def _token_vectors(encoded: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """The states of each text's tokens, of length 1, without padding."""
    return [
        normalize(text["token_embeddings"][text["attention_mask"].bool()].float(), dim=-1).half().cpu()
        for text in encoded
    ]


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
    return SentenceTransformer(name, device="cpu", model_kwargs=settings, **NO_CODE).eval()


def _limit(model: SentenceTransformer, name: str, max_tokens: int | None) -> None:
    if max_tokens is None:
        return
    most = model.max_seq_length or max(3, max_tokens)
    if not 3 <= max_tokens <= most:  # two of them are not the text's
        raise DataError(f"--max_tokens must be 3 to {most}, which is what {name} reads, not {max_tokens}")
    model.max_seq_length = max_tokens
