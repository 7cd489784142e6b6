"""The models, the texts that they read and the amounts of work, in full and tiny."""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from bench.gpu.records import Timing
from model_repository.tokenizer.pair_encoding import PairEncoder, PairEncodingConfig
from trainer.data.records import JudgedDocument, QueryGroup
from trainer.measures.costs import Shape, read_shape

DOCUMENTS = 8  # of a query
QUERY_WORDS = 3
SPECIAL = ("[CLS]", "[SEP]", "<s>", "</s>", "Query:", "Document:")
WORDS = tuple(f"word{number}" for number in range(1000))
VOCABULARY = {"vocab_size": 32000, "max_position_embeddings": 4096}


def _llama(hidden: int, wide: int, layers: int, heads: int, key_value_heads: int, **more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": key_value_heads, **VOCABULARY, **more}  # fmt: skip


def _bert(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "bert", "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "vocab_size": 30522, "max_position_embeddings": 512}  # fmt: skip


LLAMA_1B = _llama(2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True)  # the shape of Llama-3.2-1B
LLAMA_7B = _llama(4096, 11008, 32, 32, 32)  # the shape of Llama-2-7B
BERT_6 = _bert(768, 6, 12)  # BERT-base with 6 of its 12 layers
MINILM_6 = _bert(384, 6, 12)  # the shape of all-MiniLM-L6-v2
TINY_LLAMA = _llama(64, 160, 2, 4, 2) | {"vocab_size": 4000}
TINY_BERT = _bert(64, 2, 4) | {"vocab_size": 4000}


@dataclass(frozen=True, eq=False)
class Model:
    """A model and the rows that it reads."""

    config: dict[str, Any]  # of transformers, with its model_type
    row_lengths: tuple[int, ...]
    pair_tokens: int  # the mean of a pair
    longest_pair: int
    step_tokens: tuple[int, ...]  # about, of a training step: the first that fits in memory is taken

    @property
    def decoder(self) -> bool:
        return bool(self.config["model_type"] == "llama")

    def drawn(self, causal: bool = False) -> Any:
        """A causal LM or else a scorer, with drawn weights."""
        kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        set_seed(0)
        return kind.from_config(AutoConfig.for_model(**self.config, num_labels=1, pad_token_id=0), dtype=torch.float32)

    def shape(self, causal: bool = False) -> Shape:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "config.json"
            path.write_text(json.dumps({**self.config, "pad_token_id": 0}), encoding="utf-8")
            return read_shape(str(path), causal)

    def encoder(self, row_length: int) -> PairEncoder:
        """An encoder for which each of WORDS is one token."""
        tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate((*SPECIAL, *WORDS))}, SPECIAL[0]))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        limits: dict[str, Any] = {"max_query_tokens": 8, "max_pair_tokens": self.longest_pair, "row_length": row_length,
                                  "slots_per_row": -(-2 * row_length // self.pair_tokens)}  # fmt: skip
        if not self.decoder:
            return PairEncoder(tokenizer, PairEncodingConfig("encoder", "[CLS]", "[SEP]", **limits))
        return PairEncoder(tokenizer, PairEncodingConfig("decoder", "<s>", "</s>", "Query: ", " Document: ", **limits))

    def lengths(self, count: int) -> npt.NDArray[np.int64]:
        """[count], from a gamma distribution whose deviation is half of its mean, cut at both ends."""
        drawn = np.random.default_rng(0).gamma(4.0, self.pair_tokens / 4.0, count)
        return np.clip(drawn.round(), self.pair_tokens // 3, self.longest_pair).astype(np.int64)

    def groups(self, queries: int) -> list[QueryGroup]:
        """Queries with DOCUMENTS documents each, all clicked, with labels 0 to 3. Their pairs have ``lengths``."""
        draw, fixed = np.random.default_rng(1), QUERY_WORDS + (4 if self.decoder else 3)
        lengths = self.lengths(queries * DOCUMENTS).reshape(queries, DOCUMENTS) - fixed

        def text(count: int) -> str:
            return " ".join(draw.choice(WORDS, count))

        def document(place: int, length: int) -> JudgedDocument:
            return JudgedDocument(f"d{place}", "", text(length), label=place % 4, clicks=1 + place % 3)

        return [
            QueryGroup(f"q{query}", text(QUERY_WORDS), tuple(itertools.starmap(document, enumerate(of_query.tolist()))))
            for query, of_query in enumerate(lengths)
        ]


@dataclass(frozen=True)
class Sizes:
    """A whole run of the bench."""

    trained: dict[str, Model]
    served: dict[str, Model]
    lora_rank: int
    square: int  # rows and columns of the ceiling's matrices
    scoring_rows: int  # rows of one forward pass
    steps: Timing
    kernels: Timing
    workers: int  # processes that read data, in the item that has some

    @property
    def models(self) -> dict[str, Model]:
        return {**self.trained, **self.served}


FULL = Sizes(
    trained={
        "1b": Model(LLAMA_1B, (1024, 2048), 150, 512, (16384, 8192)),
        "7b": Model(LLAMA_7B, (1024, 2048), 150, 512, (16384, 8192, 4096)),
        "bert6": Model(BERT_6, (512, 1024), 90, 256, (65536, 32768)),
    },
    served={  # pairs of TREC DL's passages, and of longer documents
        "bert6-92": Model(BERT_6, (256,), 92, 230, (16384,)),
        "bert6-256": Model(BERT_6, (512,), 256, 512, (16384,)),
        "minilm6-92": Model(MINILM_6, (256,), 92, 230, (16384,)),
        "minilm6-256": Model(MINILM_6, (512,), 256, 512, (16384,)),
    },
    lora_rank=16,
    square=8192,
    scoring_rows=64,
    steps=Timing(warmup=4, rounds=5, repeats=4),
    kernels=Timing(warmup=20, rounds=7, repeats=50),
    workers=8,
)
QUICK = Sizes(
    trained={
        "7b": Model(TINY_LLAMA, (64,), 24, 48, (128,)),
        "bert6": Model(TINY_BERT, (128,), 18, 48, (128,)),
    },
    served={"tiny": Model(TINY_BERT, (128,), 18, 48, (128,))},
    lora_rank=4,
    square=64,
    scoring_rows=2,
    steps=Timing(warmup=1, rounds=2, repeats=1),
    kernels=Timing(warmup=1, rounds=2, repeats=1),
    workers=1,
)
