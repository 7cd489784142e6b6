"""The last layer of a BERT for the tokens that stand for pairs alone: no other token's last state is ever read.

Of a layer's matrices that leaves keys and values to all tokens, and the rest, five sixths of the work, to one token of
each pair: a sixth of 6 layers, nearly. The result is the same.
Shapes: R rows, L token slots a row, S pairs at most a row, H hidden, D a head's width; in RSHD H is heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FAMILIES = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}  # one design of the layer


def reads_pooled_tokens(model: Any) -> bool:
    """Whether ``pooled_states`` knows the model's layers; those that FSDP has sharded only run whole, and attention
    written into the layer (``eager``) cannot be called from outside."""
    if model.config.model_type not in FAMILIES or model.config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        return False
    return not isinstance(next(model.base_model.encoder.layer[-1].parameters()), DTensor)


def at_positions(values_RLX: Tensor, positions_RS: Tensor) -> Tensor:
    """[R, S, X]: of each row what is at its positions."""
    return torch.gather(values_RLX, 1, positions_RS[:, :, None].expand(-1, -1, values_RLX.shape[-1]))


def pooled_states(model: Any, inputs: dict[str, Tensor], mask_R1LL: Tensor, pool_positions_RS: Tensor) -> Tensor:
    """The last states [R, S, H] of the tokens at ``pool_positions_RS``; ``inputs`` are those of the embeddings."""
    *layers, last = model.base_model.encoder.layer
    states_RLH = model.base_model.embeddings(**inputs)
    if hasattr(model.base_model, "embeddings_project"):  # Electra's smaller embeddings
        states_RLH = model.base_model.embeddings_project(states_RLH)
    for layer in layers:
        states_RLH = layer(states_RLH, mask_R1LL)
    attention = last.attention.self
    pooled_RSH = at_positions(states_RLH, pool_positions_RS)
    rows, width = states_RLH.shape[0], attention.attention_head_size
    queries, keys, values = (
        matrix(states).view(rows, -1, attention.num_attention_heads, width).transpose(1, 2)
        for matrix, states in (
            (attention.query, pooled_RSH), (attention.key, states_RLH), (attention.value, states_RLH),
        )
    )  # fmt: skip
    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    context_RSHD, _ = attend(
        attention,
        queries,
        keys,
        values,
        at_positions(mask_R1LL[:, 0], pool_positions_RS)[:, None],
        dropout=attention.dropout.p if model.training else 0.0,
        scaling=attention.scaling,
    )
    attended_RSH = last.attention.output(context_RSHD.flatten(2), pooled_RSH)
    states_RSH: Tensor = last.feed_forward_chunk(attended_RSH)
    return states_RSH
