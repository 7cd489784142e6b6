"""A model's own forward made the packed one: for the rows of a step at once, or in parts that fit a token budget.

In parts, a step keeps only the scores of each part, and computes the part a second time when its gradient is due. A
group of any size then takes the memory of one part, in training and in evaluations. The gradient is that of the whole
step. Source: Gao et al. 2021, arXiv 2101.06983; the second pass, its random states included, is PyTorch's checkpoint.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.checkpoints.load import Model
from trainer.data.records import DataError
from trainer.packed.forward import packed_scores, packed_token_losses
from trainer.training.processes import highest


def use_packed_forward(model: Model, rows_per_part: int | None = None) -> Model:
    """Bind ``packed_scores`` (a causal LM: ``packed_token_losses``) as the model's own forward.

    The Trainer then trains, wraps and saves the Hugging Face model itself; a module around it would be saved
    without its configuration. ``rows_per_part`` rows go through the model at a time, all of a step by default.
    """
    packed = packed_token_losses if model.get_output_embeddings() is not None else packed_scores
    model.forward = types.MethodType(packed if rows_per_part is None else _in_parts(packed, rows_per_part), model)
    return model


def rows_within(token_budget: int | None, row_length: int) -> int | None:
    """The number of rows of a forward pass. Raises DataError for a ``--token_budget`` below one row."""
    if token_budget is not None and token_budget < row_length:
        raise DataError(f"--token_budget {token_budget} is below one row of the checkpoint, {row_length} token slots")
    return None if token_budget is None else token_budget // row_length


def _in_parts(packed: Callable[..., Tensor], rows_per_part: int) -> Callable[..., Tensor]:
    @functools.wraps(packed)
    def forward(model: Model, **inputs: Tensor) -> Tensor:
        rows = inputs["input_ids"].shape[0]
        # Where weights are sharded, processes gather them together: all must make as many parts.
        count = highest(-(-rows // rows_per_part), inputs["input_ids"].device)
        if count == 1:
            return packed(model, **inputs)
        starts = [min(part * rows_per_part, rows - 1) for part in range(count)]
        slices = [{name: values[first : first + rows_per_part] for name, values in inputs.items()} for first in starts]
        again: Callable[..., Tensor] = functools.partial(checkpoint, packed, use_reentrant=False)
        compute = again if torch.is_grad_enabled() else packed
        parts = [compute(model, **part) for part in slices]
        return torch.cat(parts)[:rows]  # what a process computes only because others have more gets no gradient

    return forward
