"""The forward pass of training: the packed rows of a step at once, or in parts that fit a token budget.

In parts, a step keeps of each part its scores alone, and computes the part a second time when its gradient
is due: a group of any size then takes the memory of one part. The gradient is that of the whole step. Source:
Gao et al. 2021, arXiv 2101.06983; the second pass, its random states included, is PyTorch's checkpoint.
Shapes: R rows, L token slots a row, S pairs at most a row.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.data.records import DataError
from trainer.packed.forward import next_token_logits, packed_hidden, packed_scores
from trainer.training.batches import IGNORED
from trainer.training.processes import highest

Model = Any  # a transformers PreTrainedModel


def use_packed_forward(model: Model, rows_per_part: int | None = None) -> Model:
    """Bind ``packed_scores`` (a causal LM: ``packed_token_losses``) as the model's own forward.

    The Trainer then trains, wraps and saves the Hugging Face model itself; a module around it would
    be saved without its configuration. Where a gradient is wanted, ``rows_per_part`` rows go at a time.
    """
    packed = packed_token_losses if model.get_output_embeddings() is not None else packed_scores
    model.forward = types.MethodType(packed if rows_per_part is None else _in_parts(packed, rows_per_part), model)
    return model


def rows_within(token_budget: int | None, row_length: int) -> int | None:
    """Rows of a forward pass. Raises DataError for a ``--token_budget`` below one row."""
    if token_budget is not None and token_budget < row_length:
        raise DataError(f"--token_budget {token_budget} is below one row of the checkpoint, {row_length} token slots")
    return None if token_budget is None else token_budget // row_length


def _in_parts(packed: Callable[..., Tensor], rows_per_part: int) -> Callable[..., Tensor]:
    @functools.wraps(packed)
    def forward(model: Model, **inputs: Tensor) -> Tensor:
        rows = inputs["input_ids"].shape[0]
        if not torch.is_grad_enabled():
            return packed(model, **inputs)
        # Where weights are sharded, processes gather them together: all must make as many parts.
        count = highest(-(-rows // rows_per_part), inputs["input_ids"].device)
        if count == 1:
            return packed(model, **inputs)
        starts = [min(part * rows_per_part, rows - 1) for part in range(count)]
        parts = [
            checkpoint(packed, model, use_reentrant=False, **_rows(inputs, slice(start, start + rows_per_part)))
            for start in starts
        ]
        return torch.cat(parts)[:rows]  # what a process computes only because others have more gets no gradient

    return forward


def _rows(inputs: dict[str, Tensor], part: slice) -> dict[str, Any]:
    return {name: values[part] for name, values in inputs.items()}


def packed_token_losses(
    model: Model,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    pool_positions: Tensor,
    labels: Tensor,
) -> Tensor:
    """Cross entropy [R, L], float32, of the tokens in ``labels[R, L]``, each predicted at the token before.

    0 where ``labels`` is IGNORED; logits are computed for the others alone. The first token of a row has none
    before it and bears no loss; a document's side is never first.
    """
    del pool_positions  # of scorers
    hidden_RLH = packed_hidden(model, input_ids, token_type_ids, position_ids, segment_ids)
    bearing = labels[:, 1:] != IGNORED
    logits_TV = next_token_logits(model, hidden_RLH[:, :-1][bearing])
    losses_RL = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    losses_RL[:, 1:][bearing] = F.cross_entropy(logits_TV, labels[:, 1:][bearing], reduction="none")
    return losses_RL
