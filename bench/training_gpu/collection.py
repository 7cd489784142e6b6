"""A generated collection whose pairs have lengths drawn around a mean, and the encoder that packs them."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bench.training_gpu.sizes import Model
from model_repository.tokenizer.pair_encoding import Document, PairEncoder, PairEncodingConfig
from trainer.data.records import JudgedDocument, QueryGroup
from trainer.init import train_tokenizer

DOCUMENTS = 8  # of a query
QUERY_WORDS, TITLE_WORDS = 3, 4
QUERY_PREFIX, DOCUMENT_PREFIX = "Query: ", " Document: "
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
WORDS = ["".join(pair) for pair in itertools.islice(itertools.product(SYLLABLES, repeat=2), 0, None, 3)]
TOKENS = 4000  # of the tokenizer, at most: each word has one of its own, and the model's embeddings may have more


@cache
def tokenizer_for(causal: bool) -> PreTrainedTokenizerFast:
    """Each word is one token, whether a space is before it or not."""
    texts = [*WORDS, *(f"{DOCUMENT_PREFIX}{QUERY_PREFIX} {word}" for word in WORDS)]
    documents = tuple(JudgedDocument(str(place), text, "", 0, 0) for place, text in enumerate(texts * 4))
    return train_tokenizer([QueryGroup("texts", QUERY_PREFIX, documents)], TOKENS, causal)


def encoder_of(model: Model, row_length: int) -> PairEncoder:
    causal = model.config["model_type"] == "llama"
    tokenizer = Tokenizer.from_str(tokenizer_for(causal).backend_tokenizer.to_str())
    limits = {
        "max_query_tokens": 8,
        "max_pair_tokens": model.longest_pair,
        "row_length": row_length,
        "slots_per_row": -(-2 * row_length // model.pair_tokens),
    }
    if not causal:
        return PairEncoder(tokenizer, PairEncodingConfig("encoder", "[CLS]", "[SEP]", **limits))  # type: ignore[arg-type]
    prefixes = {"query_prefix": QUERY_PREFIX, "document_prefix": DOCUMENT_PREFIX}
    return PairEncoder(tokenizer, PairEncodingConfig("decoder", "<s>", "</s>", **prefixes, **limits))  # type: ignore[arg-type]


def pair_lengths(model: Model, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """[count], from a gamma distribution whose deviation is half of its mean, cut at both ends."""
    drawn = np.random.default_rng(seed).gamma(4.0, model.pair_tokens / 4.0, count)
    return np.clip(drawn.round(), model.pair_tokens // 3, model.longest_pair).astype(np.int64)


def groups_of(model: Model, encoder: PairEncoder, queries: int) -> list[QueryGroup]:
    """Queries with DOCUMENTS documents each, every one clicked, labels 0 to 3."""
    draw = np.random.default_rng(1)
    words = np.array(WORDS)
    (shortest,) = encoder.encode(_text(words[:QUERY_WORDS]), [Document(title=_text(words[:TITLE_WORDS]), summary="")])
    summaries = np.maximum(pair_lengths(model, queries * DOCUMENTS) - len(shortest.token_ids), 1).tolist()
    return [
        QueryGroup(
            f"q{query}",
            _text(draw.choice(words, QUERY_WORDS)),
            tuple(
                JudgedDocument(
                    f"d{place}",
                    _text(draw.choice(words, TITLE_WORDS)),
                    _text(draw.choice(words, summaries[query * DOCUMENTS + place])),
                    label=place % 4,
                    clicks=1 + place % 3,
                )
                for place in range(DOCUMENTS)
            ),
        )
        for query in range(queries)
    ]


def _text(words: npt.NDArray[np.str_]) -> str:
    return " ".join(words.tolist())
