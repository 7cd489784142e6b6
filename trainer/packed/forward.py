"""The packed forward of a Hugging Face model: one row holds several pairs, one score per pair.

Shapes: R rows, L token slots a row, S pairs at most a row, H hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.packed.heads import score_head
from trainer.packed.last_layer import at_positions, pooled_states, reads_pooled_tokens

# Finite, and representable in float16: infinities turn empty rows into NaN.
MASKED = -30000.0


def attention_mask(segment_ids: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """Block-diagonal additive mask [R, 1, L, L]: a token sees its own pair (if causal, up to itself)."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    if causal:
        places = torch.arange(segment_ids.shape[1], device=segment_ids.device)
        same = same & (places[None, :, None] >= places[None, None, :])
    return torch.where(same, 0.0, MASKED).to(dtype)[:, None]


def packed_scores(
    model: Any,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    pool_positions: Tensor,
) -> Tensor:
    """Float32 logits [R, S] of the pairs in the rows; slots without a pair hold a meaningless number.

    Raises UnknownHeadError, which ``trainer.models.check_packing`` looks for whenever a model is loaded.
    """
    inputs = _inputs(model, input_ids, token_type_ids, position_ids)
    mask_R1LL = attention_mask(segment_ids, is_decoder(model), model.dtype)
    if reads_pooled_tokens(model):
        pooled_RSH = pooled_states(model, inputs, mask_R1LL, pool_positions)
    else:
        pooled_RSH = at_positions(_hidden(model, inputs, mask_R1LL), pool_positions)
    with _full_precision(pooled_RSH):
        return score_head(model, pooled_RSH.flatten(0, 1).to(_head_precision(model))).reshape(pool_positions.shape)


def _head_precision(model: Any) -> torch.dtype:
    head = getattr(model, "score", None) or getattr(model, "classifier", None) or model
    precision: torch.dtype = next(weight.dtype for weight in head.parameters())
    return precision


def _full_precision(values: Tensor) -> AbstractContextManager[None]:
    """No autocast within: logits of bfloat16 tie."""
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def next_token_logits(model: Any, hidden: Tensor) -> Tensor:
    """Float32 logits [..., vocabulary] from a causal LM's states [..., H], as the family's own class makes them."""
    logits: Tensor = model.get_output_embeddings()(hidden).float() / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)  # of Gemma 2 and 3; the scale is Granite's
    return logits if cap is None else cap * torch.tanh(logits / cap)


def packed_hidden(
    model: Any, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, segment_ids: Tensor
) -> Tensor:
    """The last layer's states [R, L, H]."""
    mask_R1LL = attention_mask(segment_ids, is_decoder(model), model.dtype)
    return _hidden(model, _inputs(model, input_ids, token_type_ids, position_ids), mask_R1LL)


def _hidden(model: Any, inputs: dict[str, Tensor], mask_R1LL: Tensor) -> Tensor:
    settings = {"use_cache": False} if is_decoder(model) else {}
    hidden_RLH: Tensor = model.base_model(**inputs, attention_mask=mask_R1LL, **settings).last_hidden_state
    return hidden_RLH


def _inputs(model: Any, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
    inputs = {"input_ids": input_ids, "position_ids": position_ids}
    return inputs | {"token_type_ids": token_type_ids} if takes_token_types(model) else inputs


def is_decoder(model: Any) -> bool:
    """Whether a token sees only what comes before it: causal LMs, and scorers with their bias-free head."""
    return hasattr(model, "score") or hasattr(model, "lm_head")


def takes_token_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1
