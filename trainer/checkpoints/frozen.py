"""The matrices that LoRA leaves as they are, in half or an eighth of the memory while adapters are trained beside them.

Source of the four bits: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from trainer.checkpoints.layers import find_layers
from trainer.checkpoints.load import Model
from trainer.data.records import DataError

HEADS = ["lm_head", "embed_out", "score"]  # of LLMs, which stay as they are


def round_frozen(model: Model) -> None:
    """Bring the frozen matrices of the layers, and a causal LM's head of its own, to bf16.

    Autocast rounds them in the same way for each product, so that training stays the same to the last bit. Embeddings
    and norms, which autocast does not round, stay in float32.
    """
    matrices = list(find_layers(model).linear().values())
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and head.weight is not model.get_input_embeddings().weight:
        matrices.append(head)
    for matrix in matrices:
        for weight in matrix.parameters(recurse=False):
            if not weight.requires_grad and weight.is_floating_point():
                weight.data = weight.data.bfloat16()


def check_four_bit(lora_rank: int, frozen_precision: str) -> None:
    """Raises DataError where no model can be trained beside matrices of 4 bits."""
    if not lora_rank:
        raise DataError("--load_in_4bit freezes the matrices of an LLM: it needs --lora_rank")
    if frozen_precision == "fp32":
        raise DataError("--load_in_4bit does not go with --frozen_precision fp32")
    if not torch.cuda.is_available():
        raise DataError("--load_in_4bit needs an NVIDIA GPU")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError("--load_in_4bit needs bitsandbytes: pip install 'disranker[qlora]'")


def four_bit() -> dict[str, Any]:
    """Settings of transformers' loaders for matrices of 4 bits, which compute in float32 until ``compute_in_bf16``.

    The check of packed scores needs more digits than bf16 has.
    """
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=HEADS,
    )
    return {"quantization_config": settings}


def compute_in_bf16(model: Model) -> None:
    """Let matrices of 4 bits be unpacked to bf16 for their products, and train the adapters beside them."""
    quantised: Any
    for quantised in find_layers(model).linear().values():
        if not quantised.weight.requires_grad:
            quantised.compute_dtype = quantised.weight.quant_state.dtype = torch.bfloat16
    model._hf_peft_config_loaded = True  # for the Trainer, which refuses quantised models without adapters
