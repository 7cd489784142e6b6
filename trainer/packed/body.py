"""The body of a model: the states of all tokens after the last layer, or only of those that stand for pairs.

Of a pair only one token's last state is read. Where the design of the last layer is known, only keys and values are
computed for every token; the rest of the layer, five sixths of its work, runs on one token for each pair. For 6
layers that saves about a sixth of all. The result is the same.
In the names of shapes, D is the width of an attention head; in RSHD, H is the heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FAMILIES = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}  # one design of the layer


def reads_pooled_tokens(model: Any) -> bool:
    """Whether the last layer can be computed for pooled tokens only.

    A layer that FSDP has sharded only runs as a whole, and attention that is written into the layer (``eager``)
    cannot be called from outside.
    """
    if model.config.model_type not in FAMILIES or model.config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        return False
    return not isinstance(next(model.base_model.encoder.layer[-1].parameters()), DTensor)


def at_positions(values_RLX: Tensor, positions_RS: Tensor) -> Tensor:
    """[R, S, X]: the values of each row at its positions."""
    return torch.gather(values_RLX, 1, positions_RS[:, :, None].expand(-1, -1, values_RLX.shape[-1]))


def body_states(model: Any, inputs: dict[str, Tensor], mask_R1LL: Tensor) -> Tensor:
    """The last states [R, L, H] of all tokens; ``inputs`` are those of the embeddings."""
    settings = {"use_cache": False} if is_decoder(model) else {}
    states_RLH: Tensor = model.base_model(**inputs, attention_mask=mask_R1LL, **settings).last_hidden_state
    return states_RLH


def pooled_states(model: Any, inputs: dict[str, Tensor], mask_R1LL: Tensor, pool_positions_RS: Tensor) -> Tensor:
    """The last states [R, S, H] of the tokens at ``pool_positions_RS``."""
    if not reads_pooled_tokens(model):
        return at_positions(body_states(model, inputs, mask_R1LL), pool_positions_RS)
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


def mean_states(states_RLH: Tensor, segment_ids: Tensor, pool_positions: Tensor) -> Tensor:
    """The mean [R, S, H] of the states of each pair's tokens; ``pool_positions`` [R, S] name one token of each."""
    pairs_RS1 = torch.gather(segment_ids, 1, pool_positions)[:, :, None]
    own_RSL = (pairs_RS1 == segment_ids[:, None]).to(states_RLH.dtype)
    return (own_RSL / own_RSL.sum(-1, keepdim=True)) @ states_RLH


def is_decoder(model: Any) -> bool:
    """Whether a token sees only what comes before it: causal LMs, and scorers with their bias-free head."""
    return hasattr(model, "score") or hasattr(model, "lm_head")


def takes_token_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1
