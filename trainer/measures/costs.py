"""The memory and FLOPs of a model, from its shape only, for trainer.plan.

Rules of thumb, right within a factor of 1.5 (tests/trainer/measures/test_costs.py): enough to choose machines by.
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
from trainer.checkpoints.load import NO_CODE, CheckpointError, first_line, require_checkpoint
from trainer.packed.body import is_decoder, reads_pooled_tokens
from trainer.packed.heads import has_late_interaction, keep_last_layer_of_head, pools_all_tokens

LAST_LAYER = 0.25  # of a layer's work and memory, where only the tokens that are read are computed in the last one
# Bytes for each number that goes into or comes out of a layer's matrices, with what norms and the gate keep beside it.
KEPT_BYTES = {False: 4.5, True: 3.0}  # by whether autocast computes in bf16
# Bytes of a number in a matrix that LoRA freezes; of 4 bits, with a scale of 8 bits for 64 of them.
FROZEN_BYTES = {"fp32": 4.0, "bf16": 2.0, "4bit": 0.5 + 1 / 64}


@dataclass(frozen=True)
class Shape:
    """A model's sizes that decide its cost. Numbers are counted over all layers together."""

    family: str
    layers: int
    computed_layers: float  # less than layers where the last one is computed for some tokens only
    hidden: int  # numbers of a token between layers
    queries: int  # numbers of a token's queries, all heads together
    parameters: int  # of the whole model
    matrices: int  # numbers in the matrices of the layers, which hold nearly all of their parameters
    biases: int  # numbers in the biases of these matrices
    adapter: int  # what goes in and out of these matrices for a token: a LoRA adapter's numbers, for each rank
    head: int  # numbers in the vocabulary's matrix or the score head
    vocabulary: int  # 0 for a scorer
    tied: bool  # the vocabulary's matrix is the embedding's


@dataclass(frozen=True)
class Work:
    """How a stage runs on one GPU."""

    training: bool
    rows: int  # of one forward pass
    row_length: int
    gpus: int = 1
    bf16: bool = False
    fsdp: bool = False
    checkpointing: bool = False
    lora_rank: int = 0
    frozen: str = "fp32"  # of FROZEN_BYTES, of matrices that LoRA freezes


def read_shape(name: str, causal: bool) -> Shape:
    """The shape of a causal LM, else of a scorer, from a JSON configuration, a checkpoint or a hub id.

    The model is built on PyTorch's ``meta`` device: weights are neither downloaded nor allocated. Raises
    CheckpointError for what is no such model.
    """
    if not Path(name).is_file():
        require_checkpoint(name)
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(name, num_labels=1, **NO_CODE)
        with torch.device("meta"):
            return _shape(kind.from_config(config, dtype=torch.float32, **NO_CODE), causal)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(f"{name}: no model whose cost is known: {first_line(error)}") from error


def _shape(model: Any, causal: bool) -> Shape:
    config = model.config
    if causal and not is_decoder(model):
        raise ValueError(f"continued pre-training needs a decoder, not a {config.model_type} model")
    if has_late_interaction(model):
        keep_last_layer_of_head(model)
    layers = find_layers(model)
    outputs = model.get_output_embeddings()
    linears = list(layers.linear().values())
    if not linears or causal != isinstance(outputs, nn.Linear):
        raise ValueError(f"the layers of a {config.model_type} model are not built as expected")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    count, pooled = len(layers.modules), not causal and reads_pooled_tokens(model) and not pools_all_tokens(model)
    return Shape(
        family=config.model_type,
        layers=count,
        computed_layers=count - 1 + LAST_LAYER if pooled else count,
        hidden=config.hidden_size,
        queries=config.num_attention_heads * width,
        parameters=model.num_parameters(),
        matrices=sum(linear.weight.numel() for linear in linears),
        biases=sum(linear.bias.numel() for linear in linears if linear.bias is not None),
        adapter=sum(linear.in_features + linear.out_features for linear in linears),
        head=outputs.weight.numel() if causal else model.num_parameters() - model.base_model.num_parameters(),
        vocabulary=outputs.out_features if causal else 0,
        tied=causal and outputs.weight is model.get_input_embeddings().weight,
    )


def trained_parameters(shape: Shape, work: Work) -> int:
    """All, or with LoRA the adapters and the score head."""
    if not work.training:
        return 0
    head = 0 if shape.vocabulary else shape.head
    return work.lora_rank * shape.adapter + head if work.lora_rank else shape.parameters


def memory_bytes(shape: Shape, work: Work) -> dict[str, float]:
    """Bytes on one GPU by part. The docstring of trainer.plan lists the assumptions."""
    shards = work.gpus if work.fsdp else 1
    trained = trained_parameters(shape, work)
    width, slots = 2 if work.bf16 else 4, work.rows * work.row_length
    copies = 2 * _copied(shape, work) if work.training and work.bf16 and shards == 1 else 0.0
    exchange = 0.0
    if shards > 1:
        exchange = width * (shape.parameters - shape.matrices * max(0, 1 - 2 / shape.layers))
    elif work.gpus > 1:
        exchange = 4 * trained
    return {
        "weights": (_weight_bytes(shape, work) if work.training else width * shape.parameters) / shards,
        "gradients": 4 * trained / shards,
        "optimiser states": 8 * trained / shards,  # two moments
        "bf16 copies": copies,
        "exchange": exchange,
        "activations": slots * _activation_bytes(shape, work),
        # The loss holds three float32 tensors of logits at once.
        "vocabulary logits": slots * 12 * shape.vocabulary * work.training,
    }


def _weight_bytes(shape: Shape, work: Work) -> float:
    """Bytes of the weights of a model in training, with its adapters, on all GPUs of a sharded model together."""
    whole = 4 * (shape.parameters + work.lora_rank * shape.adapter)
    if not work.lora_rank or work.frozen == "fp32":
        return whole
    return whole - (4 - FROZEN_BYTES[work.frozen]) * shape.matrices - 2 * (shape.biases + _own_head(shape))


def _copied(shape: Shape, work: Work) -> float:
    """The numbers of which autocast has a bf16 copy: all that is trained, and of frozen matrices those in float32.

    Of these, checkpointing keeps one layer's at a time. Four bits are unpacked for one product; a layer counts here.
    """
    if not work.lora_rank:
        return shape.matrices + shape.head
    layer = shape.matrices / shape.layers
    frozen = {"fp32": layer if work.checkpointing else shape.matrices, "bf16": 0, "4bit": layer}[work.frozen]
    head = shape.head if work.frozen == "fp32" else shape.head - _own_head(shape)
    return frozen + head + work.lora_rank * shape.adapter


def _own_head(shape: Shape) -> int:
    """Numbers of a vocabulary's matrix that is frozen in bf16 with the layers': not the embedding's."""
    return shape.head if shape.vocabulary and not shape.tied else 0


def _activation_bytes(shape: Shape, work: Work) -> float:
    """Bytes that a forward pass holds for each token slot: what backward needs, or half a layer in scoring.

    SDPA's fused kernels keep no scores of attention. Checkpointing keeps each layer's input and one whole layer.
    """
    layer = KEPT_BYTES[work.bf16] * shape.adapter / shape.layers
    outside = 12 * shape.hidden  # embeddings and the last norm
    if not work.training:
        return layer / 2 + outside
    if work.checkpointing:
        return layer + outside + 4 * shape.hidden * shape.layers
    return layer * shape.computed_layers + outside


def flops_per_token(shape: Shape, work: Work) -> float:
    """Floating-point operations for each token slot: 2 for a number of the matrices, 6 in training.

    arXiv 2001.08361, section 2.1, without the embeddings, and with attention over whole rows: 4 x row_length x queries
    a layer, in training three times that. Frozen matrices have no weight gradients, so LoRA takes 4 of them and 6 of
    its adapters. Checkpointing adds a forward pass of the layers.
    """
    head = 2 * shape.head if shape.vocabulary else 0  # a score head sees one token of a pair
    matrices = 2 * shape.matrices * shape.computed_layers / shape.layers
    attention = 4 * work.row_length * shape.queries * shape.computed_layers
    forward = matrices + attention + 2 * work.lora_rank * shape.adapter
    if not work.training:
        return forward + head
    frozen = matrices + head if work.lora_rank else 0
    return (4 if work.checkpointing else 3) * forward + 3 * head - frozen
