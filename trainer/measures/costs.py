"""What a model costs in memory and FLOPs, from its shape alone: pure functions that trainer.plan reports.

Letters: h hidden numbers of a token, f those of the feed-forward part, q those of its queries (all heads), k those
of its keys, s bytes a number (bf16 2, float32 4), L token slots of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from trainer.checkpoints.layers import find_layers
from trainer.checkpoints.load import CheckpointError, require_checkpoint
from trainer.packed.forward import is_decoder
from trainer.packed.last_layer import reads_pooled_tokens

POOLED = 1 / 16  # slots of a row over its length: the tokens that a last layer is computed for, of those it could be


@dataclass(frozen=True)
class Shape:
    """What a model's cost follows from. Counts are of numbers, over all layers together."""

    family: str
    decoder: bool
    layers: int
    parameters: int  # of the whole model
    tensors: int  # that hold them
    layer_parameters: int
    matrices: int  # numbers in the matrices of the layers
    matrix_count: int
    adapter: int  # numbers in LoRA adapters of these matrices, for each rank
    head: int  # numbers in the vocabulary's matrix or the score head
    vocabulary: int  # 0: a scorer
    h: int
    f: int
    q: int
    k: int
    head_norms: bool  # queries and keys are normalised head by head, as in Qwen3
    pooled: bool  # the last layer is computed for pooled tokens only, see trainer/packed/last_layer.py


@dataclass(frozen=True)
class Work:
    """How a stage runs on one GPU."""

    training: bool
    rows: int
    row_length: int
    gpus: int = 1
    bf16: bool = False
    fsdp: bool = False
    checkpointing: bool = False
    lora_rank: int = 0


def read_shape(name: str, causal: bool) -> Shape:
    """The shape of a causal LM, else of a scorer, from a JSON configuration, a checkpoint or a hub id.

    The model is built on PyTorch's ``meta`` device: weights are neither downloaded nor allocated. Raises
    CheckpointError for what is no such model.
    """
    if not Path(name).is_file():
        require_checkpoint(name)
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(name, num_labels=1)
        with torch.device("meta"):
            return _shape(kind.from_config(config, dtype=torch.float32), causal)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{name}: no model whose cost is known: {reason}") from error


def _shape(model: Any, causal: bool) -> Shape:
    config = model.config
    if causal and not is_decoder(model):
        raise ValueError(f"continued pre-training needs a decoder, not a {config.model_type} model")
    layers = find_layers(model)
    outputs = model.get_output_embeddings()
    linears = list(layers.linear().values())
    if not linears or causal != isinstance(outputs, nn.Linear):
        raise ValueError(f"the layers of a {config.model_type} model are not built as expected")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        family=config.model_type,
        decoder=is_decoder(model),
        layers=len(layers.modules),
        parameters=model.num_parameters(),
        tensors=len(list(model.parameters())),
        layer_parameters=sum(weight.numel() for weight in layers.modules.parameters()),
        matrices=sum(linear.weight.numel() for linear in linears),
        matrix_count=len(linears),
        adapter=sum(linear.in_features + linear.out_features for linear in linears),
        head=outputs.weight.numel() if causal else model.num_parameters() - model.base_model.num_parameters(),
        vocabulary=outputs.out_features if causal else 0,
        h=config.hidden_size,
        f=config.intermediate_size,
        q=config.num_attention_heads * width,
        k=getattr(config, "num_key_value_heads", config.num_attention_heads) * width,
        head_norms=any(name.endswith("q_norm") for name, _ in layers.modules.named_modules()),
        pooled=not causal and reads_pooled_tokens(model),
    )


def trained_parameters(shape: Shape, work: Work) -> int:
    """All, or with LoRA the adapters and the score head."""
    if not work.training:
        return 0
    head = 0 if shape.vocabulary else shape.head
    return work.lora_rank * shape.adapter + head if work.lora_rank else shape.parameters


def memory_bytes(shape: Shape, work: Work) -> dict[str, float]:
    """Bytes on one GPU by part; trainer.plan's own text says what each part takes for granted."""
    shards = work.gpus if work.fsdp else 1
    adapters, trained = work.lora_rank * shape.adapter, trained_parameters(shape, work)
    width = 4 if work.training or not work.bf16 else 2
    parts: dict[str, float] = {"weights": width * shape.parameters / shards}
    if work.lora_rank:
        parts["LoRA adapters"] = 4 * adapters / shards
    if work.training:
        tensors = 2 * shape.matrix_count + (not shape.vocabulary) if work.lora_rank else shape.tensors
        parts["gradients"] = 4 * trained / shards
        parts["optimiser states"] = (8 * trained + 4 * tensors) / shards  # two moments; each tensor's step count
        if work.bf16 and shards == 1:
            # Autocast caches copies of what is trained; a frozen matrix's copy lives as long as its graph.
            graphs = shape.layers if work.lora_rank and work.checkpointing else 1
            parts["bf16 copies"] = 2 * (shape.matrices / graphs + adapters + shape.head)
        if shards > 1:
            outside = shape.parameters - shape.layer_parameters
            parts["exchange"] = (2 if work.bf16 else 4) * (outside + shape.layer_parameters * min(1, 2 / shape.layers))
        elif work.gpus > 1:
            parts["exchange"] = 4 * trained
    parts["activations"] = work.rows * work.row_length * activation_bytes(shape, work)
    if work.training and shape.vocabulary:  # the loss holds three float32 tensors of logits at once
        parts["vocabulary logits"] = 12 * shape.vocabulary * work.rows * work.row_length
    return parts


def activation_bytes(shape: Shape, work: Work) -> float:
    """Bytes for each token slot that the forward pass keeps for the backward pass.

    After arXiv 2205.05198, section 4, for layers as transformers writes them. A layer keeps of each token:

    | | decoder: RMSNorm, gated | encoder: LayerNorm, dropout |
    | --- | --- | --- |
    | norms, float32 | 16h, LoRA 8h; of heads (4 + s)(q + k), LoRA 4(q + k) | 8h and 2h of dropout masks |
    | what goes into matrices | 2hs, bf16 5hs: cast once for each matrix | 2hs, bf16 4hs |
    | queries; keys, values for every query head; output | 4qs | 4qs |
    | feed-forward part | 4fs | 2fs |

    SDPA's fused kernels keep no scores. The mask (L numbers a token) is kept once, under autocast by each layer.
    Checkpointing keeps each layer's input, 4h, and one layer as above. Scoring is given one layer too, about twice
    what it needs.

    Next to what autograd saved on a CPU (two to four layers, 64 to 256 hidden numbers, rows of 64 and 512): 0.98 to
    1.02 of it for Llama and Qwen3, 1.00 to 1.05 with LoRA, 0.92 to 1.00 for BERT, whose dropout masks take s bytes
    a number there and not 1. Weak: decoders without a gate, or with LayerNorm, are taken for gated ones with RMSNorm,
    and attention that falls back from the fused kernels keeps L scores for each head and token.
    """
    size = 2 if work.bf16 else 4
    if shape.decoder:
        heads = shape.q + shape.k if shape.head_norms else 0
        norms = 8 * shape.h + 4 * heads if work.lora_rank else 16 * shape.h + (4 + size) * heads
        inputs, inner = 5 if work.bf16 else 2, 4 * shape.f
    else:
        norms, inputs, inner = 10 * shape.h, 4 if work.bf16 else 2, 2 * shape.f
    adapters = work.lora_rank * shape.matrix_count / shape.layers
    layer = norms + size * (inputs * shape.h + 4 * shape.q + inner + adapters)
    layer += 2 * work.row_length if work.bf16 else 0
    outside = 12 * shape.h + 4 * work.row_length  # embeddings, the last norm, the mask
    if not work.training:
        return layer + outside
    if work.checkpointing:
        return outside + layer + 4 * shape.h * shape.layers
    if shape.pooled:  # all tokens have keys, values and what these are made of
        of_all = size * ((2 if work.bf16 else 1) * shape.h + 2 * shape.q)
        return outside + layer * (shape.layers - 1 + POOLED) + (1 - POOLED) * of_all
    return outside + layer * shape.layers


def flops_per_token(shape: Shape, work: Work) -> float:
    """Floating-point operations for each token slot: 2 for a number of the matrices, 6 in training.

    arXiv 2001.08361, section 2.1, without the embeddings, and with attention over whole rows: 4Lq a layer, in
    training three times that. Frozen matrices have no weight gradients, so LoRA takes 4 of them and 6 of its
    adapters. Checkpointing adds a forward pass of the layers.
    """
    head = 2 * shape.head if shape.vocabulary else 0  # a score head sees one token of a pair
    matrices, layers = 2.0 * shape.matrices, float(shape.layers)
    if shape.pooled:
        matrices -= 2 * (1 - POOLED) * (shape.matrices / shape.layers - 2 * shape.h * shape.k)
        layers -= 1 - POOLED
    forward = matrices + 2 * work.lora_rank * shape.adapter + 4 * work.row_length * shape.q * layers
    if not work.training:
        return forward + head
    frozen = matrices + head if work.lora_rank else 0
    return (4 if work.checkpointing else 3) * forward + 3 * head - frozen
