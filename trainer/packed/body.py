"""The body of a model: the states of all tokens after the last layer, or only of those that stand for pairs.

Of a pair most heads read one token's last state. Where the design of the last layer is known, only keys and values are
computed for every token; the rest of the layer, most of its work, runs on one token for each pair. For 6 layers that
saves about a sixth of all. The result is the same.
In the names of shapes, D is the width of an attention head; in RSHD and RHLD, H is the heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from trainer.packed.attention import MASKED, Visible, is_dense, layer_inputs

Seen = dict[str, Visible]  # for each kind of layer, by transformers' name of the kind


def reads_pooled_tokens(model: Any) -> bool:
    """Whether the last layer can be computed for pooled tokens only.

    A layer that FSDP has sharded only runs as a whole, and attention that is written into the layer (``eager``)
    cannot be called from outside.
    """
    family, kernel = model.config.model_type, model.config._attn_implementation
    if family not in POOLED_STATES or kernel not in ALL_ATTENTION_FUNCTIONS:
        return False
    layers = model.base_model.layers if family == "modernbert" else model.base_model.encoder.layer
    return not isinstance(next(layers[-1].parameters()), DTensor)


def at_positions(values_RLX: Tensor, positions_RS: Tensor) -> Tensor:
    """[R, S, X]: the values of each row at its positions."""
    return torch.gather(values_RLX, 1, positions_RS[:, :, None].expand(-1, -1, values_RLX.shape[-1]))


def body_states(model: Any, inputs: dict[str, Tensor], seen: Seen) -> Tensor:
    """The last states [R, L, H] of all tokens; ``inputs`` are those of the embeddings."""
    masks, settings = layer_inputs(model, seen)
    if is_decoder(model):
        settings["use_cache"] = False
    mask = masks if len(masks) > 1 else next(iter(masks.values()))  # a mapping only where layers differ
    states_RLH: Tensor = model.base_model(**inputs, attention_mask=mask, **settings).last_hidden_state
    return states_RLH


def pooled_states(model: Any, inputs: dict[str, Tensor], seen: Seen, pool_positions_RS: Tensor) -> Tensor:
    """The last states [R, S, H] of the tokens at ``pool_positions_RS``."""
    if not reads_pooled_tokens(model):
        return at_positions(body_states(model, inputs, seen), pool_positions_RS)
    states_RSH: Tensor = POOLED_STATES[model.config.model_type](model, inputs, seen, pool_positions_RS)
    return states_RSH


def _bert_states(model: Any, inputs: dict[str, Tensor], seen: Seen, pool_positions_RS: Tensor) -> Tensor:
    (tokens,) = seen.values()
    masks, settings = layer_inputs(model, seen)
    (mask,) = masks.values()
    *layers, last = model.base_model.encoder.layer
    states_RLH = model.base_model.embeddings(**inputs)
    if hasattr(model.base_model, "embeddings_project"):  # Electra's smaller embeddings
        states_RLH = model.base_model.embeddings_project(states_RLH)
    for layer in layers:
        states_RLH = layer(states_RLH, mask, **settings)
    attention = last.attention.self
    pooled_RSH = at_positions(states_RLH, pool_positions_RS)
    queries, keys, values = (
        matrix(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for matrix, states in (
            (attention.query, pooled_RSH), (attention.key, states_RLH), (attention.value, states_RLH),
        )
    )  # fmt: skip
    mask_R1SL = tokens.mask(model.dtype, pool_positions_RS)
    context_RSH = _attended(attention, queries, keys, values, mask_R1SL, attention.dropout.p)
    states_RSH: Tensor = last.feed_forward_chunk(last.attention.output(context_RSH, pooled_RSH))
    return states_RSH


def _modernbert_states(model: Any, inputs: dict[str, Tensor], seen: Seen, pool_positions_RS: Tensor) -> Tensor:
    masks, settings = layer_inputs(model, seen)
    body, states_RLH = model.base_model, model.base_model.embeddings(inputs["input_ids"])
    turns = {kind: body.rotary_emb(states_RLH, inputs["position_ids"], kind) for kind in masks}
    *layers, last = body.layers
    for layer in layers:
        kind = layer.attention_type
        states_RLH = layer(states_RLH, attention_mask=masks[kind], position_embeddings=turns[kind], **settings)
    attention, kind = last.attn, last.attention_type
    heads_RL3HD = attention.Wqkv(last.attn_norm(states_RLH)).unflatten(-1, (3, -1, attention.head_dim))
    queries, keys, values = (heads_RLHD.transpose(1, 2) for heads_RLHD in heads_RL3HD.unbind(2))
    queries, keys = apply_rotary_pos_emb(queries, keys, *turns[kind])
    places_RHSD = pool_positions_RS[:, None, :, None].expand(-1, queries.shape[1], -1, attention.head_dim)
    queries = torch.gather(queries, 2, places_RHSD)
    mask_R1SL = seen[kind].mask(model.dtype, pool_positions_RS)
    context_RSH = _attended(attention, queries, keys, values, mask_R1SL, attention.attention_dropout)
    pooled_RSH = at_positions(states_RLH, pool_positions_RS) + attention.out_drop(attention.Wo(context_RSH))
    states_RSH: Tensor = body.final_norm(pooled_RSH + last.mlp(last.mlp_norm(pooled_RSH)))
    return states_RSH


def _attended(
    attention: Any, queries_RHSD: Tensor, keys_RHLD: Tensor, values_RHLD: Tensor, mask_R1SL: Tensor, dropout: float
) -> Tensor:
    """The mix of values [R, S, H] that the layer's kernel gives to the queries of pooled tokens."""
    kernel = attention.config._attn_implementation if is_dense(attention) else "sdpa"
    attend = ALL_ATTENTION_FUNCTIONS[kernel]
    context_RSHD, _ = attend(
        attention,
        queries_RHSD,
        keys_RHLD,
        values_RHLD,
        mask_R1SL,
        dropout=dropout if attention.training else 0.0,
        scaling=queries_RHSD.shape[-1] ** -0.5,
    )
    return context_RSHD.flatten(2)  # type: ignore[no-any-return]


# By family; BERT's kin have one design of the layer.
POOLED_STATES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _bert_states),
    "modernbert": _modernbert_states,
}


def mean_states(states_RLH: Tensor, segment_ids: Tensor, pool_positions: Tensor) -> Tensor:
    """The mean [R, S, H], float32, of the states of each pair's tokens; ``pool_positions`` [R, S] name one of each."""
    own_RSL = _own_tokens(segment_ids, pool_positions).float()
    return (own_RSL / own_RSL.sum(-1, keepdim=True)) @ states_RLH.float()


def compared_tokens(
    states_RLH: Tensor, segment_ids: Tensor, token_type_ids: Tensor, pool_positions: Tensor, sharpness: float
) -> Tensor:
    """The product [R, S, H], float32, of a token of the query with what the document has like it, on average.

    States are brought to length 1, so the sum of a product of two tokens is their cosine. What is like a token is the
    mean of the document's tokens, weighed by the softmax of ``sharpness`` times the cosine. The sum of that product is
    below the soft maximum of the cosines, their log-sum-exp over ``sharpness``; the rest is spread over H.
    The query has the start token and the separator before the document.
    """
    units_RLH, of_query_RL = F.normalize(states_RLH.float(), dim=-1), token_type_ids == 0
    others_RLL = (segment_ids[:, :, None] != segment_ids[:, None]) | of_query_RL[:, None]
    sharp_RLL = (sharpness * units_RLH @ units_RLH.transpose(1, 2)).masked_fill(others_RLL, MASKED)
    weights_RLL = sharp_RLL.softmax(-1)
    # Not logsumexp: TensorRT sums without taking the maximum off, and a token that sees nothing would have -inf.
    soft_RL = (sharp_RLL.amax(-1) - weights_RLL.amax(-1).log()) / sharpness
    products_RLH = units_RLH * (weights_RLL @ units_RLH)
    rest_RL = soft_RL - products_RLH.sum(-1)
    own_RSL = (_own_tokens(segment_ids, pool_positions) & of_query_RL[:, None]).float()
    return (own_RSL / own_RSL.sum(-1, keepdim=True)) @ (products_RLH + rest_RL[:, :, None] / products_RLH.shape[-1])


def _own_tokens(segment_ids: Tensor, pool_positions: Tensor) -> Tensor:
    """Whether [R, S, L] a token of the row is of the pair that a position names."""
    return torch.gather(segment_ids, 1, pool_positions)[:, :, None] == segment_ids[:, None]


def is_decoder(model: Any) -> bool:
    """Whether a token sees only what comes before it: causal LMs, and scorers with their bias-free head."""
    return hasattr(model, "score") or hasattr(model, "lm_head")


def takes_token_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1
