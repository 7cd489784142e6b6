"""The models and the amounts of work, in full and tiny."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.training_gpu.records import Timing
from trainer.measures.costs import Shape, read_shape

Config = dict[str, Any]  # of transformers, with its model_type

LLAMA_1B: Config = {  # the shape of Llama-3.2-1B
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "max_position_embeddings": 4096, "vocab_size": 32000,
}  # fmt: skip
LLAMA_7B: Config = {  # the shape of Llama-2-7B
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "vocab_size": 32000,
}  # fmt: skip
BERT_6: Config = {  # BERT-base with 6 of its 12 layers
    "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6,
    "num_attention_heads": 12, "max_position_embeddings": 512, "vocab_size": 30522,
}  # fmt: skip
TINY_LLAMA: Config = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 4000,
}  # fmt: skip
TINY_BERT: Config = {
    "model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256, "vocab_size": 4000,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model and the rows that it reads. ``step_tokens`` are token slots of a training step, about: the first that
    fit without activation checkpointing are taken, else the first that fit with it."""

    config: Config
    row_lengths: tuple[int, ...]
    pair_tokens: int  # mean of a pair
    longest_pair: int
    step_tokens: tuple[int, ...]

    def shape(self, causal: bool) -> Shape:
        """Raises CheckpointError as ``read_shape`` does."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "config.json"
            path.write_text(json.dumps({**self.config, "pad_token_id": 0}), encoding="utf-8")
            return read_shape(str(path), causal)


@dataclass(frozen=True)
class Sizes:
    """Of a whole run of the bench."""

    models: dict[str, Model]
    lora_rank: int
    square: int  # of the matrices of the ceiling
    scoring_rows: int  # of one forward pass
    steps: Timing
    kernels: Timing
    workers: int  # that read data, in the item that has some


FULL = Sizes(
    models={
        "1b": Model(LLAMA_1B, (1024, 2048), 150, 512, (16384, 8192)),
        "7b": Model(LLAMA_7B, (1024, 2048), 150, 512, (16384, 8192, 4096)),
        "bert6": Model(BERT_6, (512, 1024), 90, 256, (65536, 32768)),
    },
    lora_rank=16,
    square=8192,
    scoring_rows=32,
    steps=Timing(warmup=4, rounds=5, repeats=4),
    kernels=Timing(warmup=20, rounds=7, repeats=50),
    workers=8,
)
QUICK = Sizes(
    models={
        "1b": Model(TINY_LLAMA, (64,), 24, 48, (128,)),
        "7b": Model(TINY_LLAMA, (64,), 24, 48, (128,)),
        "bert6": Model(TINY_BERT, (128,), 18, 48, (128,)),
    },
    lora_rank=4,
    square=64,
    scoring_rows=4,
    steps=Timing(warmup=1, rounds=2, repeats=1),
    kernels=Timing(warmup=1, rounds=2, repeats=1),
    workers=1,
)
