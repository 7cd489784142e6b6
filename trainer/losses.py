"""Training objectives: pure functions of float32 tensors that return a scalar.

Shapes: N pairs of a step; ``groups[N]`` tells which query a pair belongs to. All scores are logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def pairwise_logistic(student: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """RankNet: mean of ``log(1 + exp(-(s_i - s_j)))`` over pairs of one query with label_i > label_j.

    ``student[N]``, ``labels[N]``, ``groups[N]``. Only the order of labels counts. Without such a
    pair the loss is 0. Source: Burges et al. 2005, equation 3.
    """
    better = (labels[:, None] > labels[None, :]) & _same_group(groups)
    return _mean_over(F.softplus(student[None, :] - student[:, None]), better)


def pointwise_mse(student: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """Mean of ``(s_i - t_i)^2``: binds the student to the teacher's scale (arXiv 2411.04539, section 3.3).

    ``student[N]``, ``teacher[N]``; ``groups[N]`` is not used, all objectives take it.
    """
    del groups
    return F.mse_loss(student, teacher)


def margin_mse(student: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """Mean of ``((s_i - s_j) - (t_i - t_j))^2`` over all pairs of documents of one query.

    ``student[N]``, ``teacher[N]``, ``groups[N]``. A shift of one query's teacher scores changes
    nothing; a query with one document adds nothing. Mind the magnitude: the loss grows with the
    square of the teacher's scale. Source: Hofstätter et al. 2020, arXiv 2010.02666, equation 2.
    """
    difference = student - teacher
    pairs = _same_group(groups).triu(diagonal=1)
    return _mean_over((difference[:, None] - difference[None, :]).square(), pairs)


def hybrid_mse(
    student: Tensor, teacher: Tensor, groups: Tensor, pointwise_weight: float, margin_weight: float
) -> Tensor:
    """``pointwise_weight * pointwise_mse + margin_weight * margin_mse`` (arXiv 2411.04539, section 3.3)."""
    point, margin = pointwise_mse(student, teacher, groups), margin_mse(student, teacher, groups)
    return pointwise_weight * point + margin_weight * margin


def weighted_language_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Next-token cross entropy, the mean over labelled tokens weighted by their pair's clicks.

    ``logits[R, L, V]``, ``labels[R, L]`` with -100 for tokens that bear no loss, ``weights[R, L]``.
    Token t is predicted at t - 1, which lies in the same pair: a document's side is never first.
    """
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def _same_group(groups: Tensor) -> Tensor:
    return groups[:, None] == groups[None, :]


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
