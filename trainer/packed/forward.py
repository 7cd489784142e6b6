"""The packed forward of a Hugging Face model: one row holds several pairs, and each gets its own score.

The functions are called in training, relabelling, export and serving alike. ``model`` is always the Hugging Face
model itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model_repository.tokenizer.pair_encoding import PackedBatch
from trainer.packed.attention import Visible
from trainer.packed.body import (
    Seen,
    body_states,
    compared_tokens,
    is_decoder,
    mean_states,
    pooled_states,
    takes_token_types,
)
from trainer.packed.families import reach_of_layers
from trainer.packed.heads import (
    has_late_interaction,
    next_token_logits,
    pools_all_tokens,
    score_head,
    sharpness_of,
    without_autocast,
)

IGNORED = -100  # the label of tokens that bear no loss, as in PyTorch's cross entropy


def packed_scores(
    model: Any,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    pool_positions: Tensor,
) -> Tensor:
    """Float32 logits [R, S] of the pairs in the rows; slots without a pair hold a meaningless number.

    Raises UnknownHeadError, which ``packed.check`` finds whenever a model is loaded.
    """
    pooled_RSH = _pooled(model, pool_positions, input_ids, token_type_ids, position_ids, segment_ids)
    return score_head(model, pooled_RSH.flatten(0, 1)).reshape(pool_positions.shape)


def packed_token_losses(model: Any, labels: Tensor, pool_positions: Tensor, **rows: Tensor) -> Tensor:
    """Cross entropy [R, L], float32, of a causal LM on the tokens in ``labels[R, L]``; ``rows`` as in packed_scores.

    Each token is predicted at the one before. Logits are computed only for tokens that bear a loss; where ``labels``
    is IGNORED it is 0. The first token of a row bears none; a document's side is never first.
    """
    del pool_positions
    hidden_RLH = body_states(model, *_inputs(model, **rows))
    bearing = labels[:, 1:] != IGNORED
    logits_TV = next_token_logits(model, hidden_RLH[:, :-1][bearing])
    losses_RL = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    losses_RL[:, 1:][bearing] = F.cross_entropy(logits_TV, labels[:, 1:][bearing], reduction="none")
    return losses_RL


def packed_readings(model: Any, batch: PackedBatch) -> Tensor:
    """A scorer's logit for each pair, [N], or a causal LM's logits of the token after it, [N, vocabulary]."""
    *rows, pool_positions_RS = (torch.from_numpy(array).long().to(model.device) for array in batch.rows)
    pooled_RSH = _pooled(model, pool_positions_RS, *rows)
    head = score_head if model.get_output_embeddings() is None else next_token_logits
    return head(model, pooled_RSH.flatten(0, 1))[torch.from_numpy(batch.slots).long().to(model.device)]


def _pooled(
    model: Any,
    pool_positions: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
) -> Tensor:
    """The states [R, S, H] that stand for the pairs."""
    inputs, seen = _inputs(model, input_ids, token_type_ids, position_ids, segment_ids)
    if not pools_all_tokens(model):
        return pooled_states(model, inputs, seen, pool_positions)
    states_RLH = body_states(model, inputs, seen)
    with without_autocast(states_RLH):
        if has_late_interaction(model):
            return compared_tokens(states_RLH, segment_ids, token_type_ids, pool_positions, sharpness_of(model))
        return mean_states(states_RLH, segment_ids, pool_positions)


def _inputs(
    model: Any, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, segment_ids: Tensor
) -> tuple[dict[str, Tensor], Seen]:
    """The inputs of the model's embeddings, and what the tokens see in its layers."""
    inputs = {"input_ids": input_ids, "position_ids": position_ids}
    if takes_token_types(model):
        inputs["token_type_ids"] = token_type_ids
    causal, reaches = is_decoder(model), reach_of_layers(model.config)
    sides = token_type_ids if has_late_interaction(model) else None
    return inputs, {kind: Visible(segment_ids, causal, reach, sides) for kind, reach in reaches.items()}
