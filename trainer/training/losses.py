"""Training objectives: pure functions of float32 tensors that return a scalar.

Shapes: N pairs of a step; ``groups[N]`` tells which query a pair belongs to. All scores are logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def pairwise_logistic(student: Tensor, labels: Tensor, groups: Tensor, gap_weights: bool = False) -> Tensor:
    """RankNet: mean of ``log(1 + exp(-(s_i - s_j)))`` over pairs of one query with label_i > label_j.

    ``student[N]``, ``labels[N]``, ``groups[N]``. Only the order of labels counts, so a teacher's scores
    serve as well; ``gap_weights`` weighs each pair by label_i - label_j. Without such a pair the loss
    is 0. Source: Burges et al. 2005, equation 3.
    """
    return _mean_over_ordered(F.softplus(-_differences(student)), labels, groups, gap_weights)


def pairwise_hinge(
    student: Tensor, labels: Tensor, groups: Tensor, gap_weights: bool = False, margin: float = 1.0
) -> Tensor:
    """Mean of ``max(0, margin - (s_i - s_j))`` over pairs of one query with label_i > label_j.

    ``student[N]``, ``labels[N]``, ``groups[N]``, ``margin`` in logits; ``gap_weights`` as in
    ``pairwise_logistic``. Source: Joachims 2002, the ranking SVM's loss.
    """
    return _mean_over_ordered(F.relu(margin - _differences(student)), labels, groups, gap_weights)


def lambda_rank(student: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """RankNet, each pair weighted by what swapping its documents would change of the query's nDCG.

    ``student[N]``, ``labels[N]`` (the gain is linear, negative labels gain nothing, as in our nDCG),
    ``groups[N]``. The whole list counts, not its first ten. The weights follow the scores and get no
    gradient. Source: Burges 2010 (MSR-TR-2010-82), section 4.
    """
    same = _same_group(groups)
    gains = labels.clamp(min=0)
    discounts, ideal = (_discounts(by.detach(), same) for by in (student, gains))
    ideal_dcg = torch.where(same, gains * ideal, 0.0).sum(dim=1).clamp(min=1e-9)
    weights = _differences(gains).abs() * _differences(discounts).abs() / ideal_dcg[:, None]
    return _mean_over_ordered(weights * F.softplus(-_differences(student)), labels, groups)


def listwise_softmax(student: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """ListNet: cross entropy between the softmax of a query's labels and of its scores, mean over queries.

    ``student[N]``, ``labels[N]``, ``groups[N]``. Source: Cao et al. 2007, equation 6 (top one).
    """
    target = _log_softmax(labels, groups).exp()
    return -(target * _log_softmax(student, groups)).sum() / _queries(groups)


def kl_divergence(student: Tensor, teacher: Tensor, groups: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` over a query's documents, mean over queries.

    ``student[N]``, ``teacher[N]``, ``groups[N]``. A shift of a query's scores changes nothing; the
    factor keeps gradients alike at every temperature. Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    target, ours = (_log_softmax(scores / temperature, groups) for scores in (teacher, student))
    return temperature**2 * (target.exp() * (target - ours)).sum() / _queries(groups)


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
    pairs = _same_group(groups).triu(diagonal=1)
    return _mean_over(_differences(student - teacher).square(), pairs)


def hybrid_mse(
    student: Tensor, teacher: Tensor, groups: Tensor, pointwise_weight: float, margin_weight: float
) -> Tensor:
    """``pointwise_weight * pointwise_mse + margin_weight * margin_mse`` (arXiv 2411.04539, section 3.3)."""
    point, margin = pointwise_mse(student, teacher, groups), margin_mse(student, teacher, groups)
    return pointwise_weight * point + margin_weight * margin


def mixed_with_labels(loss: Tensor, student: Tensor, labels: Tensor, groups: Tensor, weight: float) -> Tensor:
    """``(1 - weight) * loss + weight * pairwise_logistic`` on the judged pairs; ``labels[N]`` is NaN elsewhere."""
    judged = ~labels.isnan()
    return (1 - weight) * loss + weight * pairwise_logistic(student[judged], labels[judged], groups[judged])


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``losses[R, L]`` weighted by ``weights[R, L]``: a token's weight is its pair's clicks, or 0."""
    return (losses * weights).sum() / weights.sum()


def _same_group(groups: Tensor) -> Tensor:
    return groups[:, None] == groups[None, :]


def _queries(groups: Tensor) -> Tensor:
    """How many there are."""
    return (1 / _same_group(groups).sum(dim=1)).sum()


def _differences(values: Tensor) -> Tensor:
    """[N, N]: row i, column j holds ``values[i] - values[j]``."""
    return values[:, None] - values[None, :]


def _mean_over_ordered(losses: Tensor, labels: Tensor, groups: Tensor, gap_weights: bool = False) -> Tensor:
    """Mean of ``losses[N, N]`` over pairs of one query with label_i > label_j."""
    gaps = _differences(labels)
    ordered = (gaps > 0) & _same_group(groups)
    return _mean_over(losses * gaps if gap_weights else losses, ordered)


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _log_softmax(scores: Tensor, groups: Tensor) -> Tensor:
    """[N], over the documents of each query."""
    others = torch.where(_same_group(groups), scores[None, :], -torch.inf)
    return scores - others.logsumexp(dim=1)


def _discounts(scores: Tensor, same: Tensor) -> Tensor:
    """[N]: ``1 / log2(1 + rank)`` of each document in its query, equal scores in the order of the step."""
    earlier = torch.ones_like(same).tril(diagonal=-1)
    before = (_differences(scores) < 0) | ((_differences(scores) == 0) & earlier)
    ranks = 1 + (before & same).sum(dim=1)
    return 1 / torch.log2(1 + ranks)
