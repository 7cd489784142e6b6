"""The students and the amounts of work, in full and tiny."""

from __future__ import annotations

from bench.training_gpu.records import Timing
from bench.training_gpu.sizes import BERT_6, TINY_BERT, Config, Model, Sizes

MINILM_6: Config = {  # the shape of all-MiniLM-L6-v2
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 12, "max_position_embeddings": 512, "vocab_size": 30522,
}  # fmt: skip

FULL = Sizes(
    models={  # pairs of TREC DL's passages, and of longer documents
        "bert6-92": Model(BERT_6, (256,), 92, 230, (16384,)),
        "bert6-256": Model(BERT_6, (512,), 256, 512, (16384,)),
        "minilm6-92": Model(MINILM_6, (256,), 92, 230, (16384,)),
        "minilm6-256": Model(MINILM_6, (512,), 256, 512, (16384,)),
    },
    lora_rank=0,
    square=8192,
    scoring_rows=64,
    steps=Timing(warmup=10, rounds=7, repeats=20),
    kernels=Timing(warmup=20, rounds=7, repeats=50),
    workers=0,
)
QUICK = Sizes(
    models={"tiny": Model(TINY_BERT, (128,), 18, 48, (128,))},
    lora_rank=0,
    square=64,
    scoring_rows=2,
    steps=Timing(warmup=1, rounds=2, repeats=1),
    kernels=Timing(warmup=1, rounds=2, repeats=1),
    workers=0,
)
