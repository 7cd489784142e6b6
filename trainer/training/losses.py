"""Training objectives: pure functions of float32 tensors.

Shapes: N documents of a step, ``student[N]`` their logits, ``groups[N]`` which query each belongs to, P pairs of
documents of one query, B queries. Each objective returns ``QueryLosses``; ``mean_over_queries`` makes them one loss.
Memory grows with P, the pairs within queries, and not with the square of N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class QueryLosses(NamedTuple):
    """The loss of each query: a mean over what the objective compares, its documents or pairs."""

    losses: Tensor  # [B], 0 for a query without anything to compare
    counts: Tensor  # [B], over how many documents or pairs


class Pairs(NamedTuple):
    """Every two documents of one query, once."""

    left: Tensor  # [P], places in [N]
    right: Tensor  # [P]


def pairwise_logistic(
    student: Tensor, labels: Tensor, groups: Tensor, gap_weights: bool = False, discount: bool = False
) -> QueryLosses:
    """RankNet: ``log(1 + exp(-(s_i - s_j)))`` of pairs with label_i > label_j.

    Only the order of ``labels[N]`` counts, so a teacher's scores serve as well. ``gap_weights`` weighs each pair by
    label_i - label_j, ``discount`` by ``1 / log2(1 + rank)`` of i in the order of the labels. Source: Burges et al.
    2005, equation 3; the discount, arXiv 2405.07920.
    """
    better, worse = _ordered(labels, groups)
    losses = F.softplus(student[worse] - student[better])
    if gap_weights:
        losses = losses * (labels[better] - labels[worse])
    if discount:
        losses = losses * _discounts(labels, groups)[better]
    return _by_query(losses, better, groups)


def pairwise_hinge(
    student: Tensor, labels: Tensor, groups: Tensor, gap_weights: bool = False, margin: float = 1.0
) -> QueryLosses:
    """``max(0, margin - (s_i - s_j))`` of pairs with label_i > label_j.

    ``labels[N]``, ``margin`` in logits; ``gap_weights`` as in ``pairwise_logistic``. Source: Joachims 2002, the ranking
    SVM's loss.
    """
    better, worse = _ordered(labels, groups)
    losses = F.relu(margin - (student[better] - student[worse]))
    return _by_query(losses * (labels[better] - labels[worse]) if gap_weights else losses, better, groups)


def lambda_rank(student: Tensor, labels: Tensor, groups: Tensor) -> QueryLosses:
    """RankNet, each pair weighted by what swapping its documents would change of the query's nDCG.

    ``labels[N]``: the gain is linear, negative labels gain nothing, as in our nDCG. The whole list counts, not its
    first ten. The weights follow the scores and get no gradient. Source: Burges 2010 (MSR-TR-2010-82), section 4.
    """
    better, worse = _ordered(labels, groups)
    gains, discounts = labels.clamp(min=0), _discounts(student.detach(), groups)
    query, count = _queries(groups)
    ideal = _sums(gains * _discounts(gains, groups), query, count)
    gap = (gains[better] - gains[worse]) * (discounts[better] - discounts[worse]).abs()
    weights = gap / ideal.clamp(min=1e-9)[query[better]]
    return _by_query(weights * F.softplus(student[worse] - student[better]), better, groups)


def listwise_softmax(student: Tensor, labels: Tensor, groups: Tensor) -> QueryLosses:
    """ListNet: cross entropy between the softmax of a query's ``labels[N]`` and of its scores.

    Source: Cao et al. 2007, equation 6 (top one).
    """
    return _whole(-_log_softmax(labels, groups).exp() * _log_softmax(student, groups), groups)


def list_mle(student: Tensor, labels: Tensor, groups: Tensor) -> QueryLosses:
    """ListMLE: minus the log likelihood of the order of ``labels[N]`` under the scores (Plackett-Luce), a mean over its
    places.

    Equal labels are in the order of the step. Source: Xia et al. 2008, equation 8.
    """
    ranks = _ranks(labels, groups)
    left, right = _pairs(groups)
    first_is_left = ranks[left] < ranks[right]
    earlier, later = torch.where(first_is_left, left, right), torch.where(first_is_left, right, left)
    everyone = torch.arange(len(student), device=student.device)
    rest = _logsumexp(student[torch.cat([everyone, later])], torch.cat([everyone, earlier]), len(student))
    return _by_query(rest - student, everyone, groups)


def localized_contrastive(student: Tensor, labels: Tensor, groups: Tensor) -> QueryLosses:
    """Cross entropy of each positive document (label above 0) among itself and its query's others.

    ``labels[N]``. A query without a positive, or without another, adds nothing. Source: Gao et al. 2021, arXiv
    2101.08751, equation 6.
    """
    query, count = _queries(groups)
    positive = labels > 0
    negatives = _logsumexp(student[~positive], query[~positive], count)
    chosen = torch.nonzero(positive & negatives[query].isfinite()).flatten()
    return _by_query(F.softplus(negatives[query[chosen]] - student[chosen]), chosen, groups)


def binary_cross_entropy(student: Tensor, labels: Tensor, groups: Tensor) -> QueryLosses:
    """Cross entropy of each document's probability ``sigmoid(s)`` with ``labels[N]``, brought to 0 to 1: grades above 1
    count as 1, spam as 0."""
    losses = F.binary_cross_entropy_with_logits(student, labels.clamp(0, 1), reduction="none")
    return _by_query(losses, torch.arange(len(student), device=student.device), groups)


def adr_mse(student: Tensor, teacher: Tensor, groups: Tensor, temperature: float = 1.0) -> QueryLosses:
    """``(rank_t - rank_s)^2 / log2(1 + rank_t)``, with the student's rank by sigmoids of its differences (ADR-MSE).

    Only the order of ``teacher[N]`` counts, equal scores share their mean rank. ``temperature`` in logits. Source:
    Schlatt et al. 2025 (Rank-DistiLLM), arXiv 2405.07920.
    """
    ours, theirs = torch.ones_like(student), torch.ones_like(student)
    left, right = _pairs(groups)
    above = torch.sigmoid((student[right] - student[left]) / temperature)  # right is before left
    ours = ours.index_add(0, left, above).index_add(0, right, 1 - above)
    before = 0.5 + 0.5 * torch.sign(teacher[right] - teacher[left])
    theirs = theirs.index_add(0, left, before).index_add(0, right, 1 - before)
    losses = (theirs - ours).square() / torch.log2(1 + theirs)
    return _by_query(losses, torch.arange(len(student), device=student.device), groups)


def kl_divergence(student: Tensor, teacher: Tensor, groups: Tensor, temperature: float = 1.0) -> QueryLosses:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` over a query's documents, ``teacher[N]``.

    A shift of a query's scores changes nothing; the factor keeps gradients alike at every temperature. Source: Hinton
    et al. 2015, arXiv 1503.02531.
    """
    target, ours = (_log_softmax(scores / temperature, groups) for scores in (teacher, student))
    return _whole(temperature**2 * target.exp() * (target - ours), groups)


def pointwise_mse(student: Tensor, teacher: Tensor, groups: Tensor) -> QueryLosses:
    """``(s_i - t_i)^2``: binds the student to the scale of ``teacher[N]`` (arXiv 2411.04539, section 3.3)."""
    return _by_query((student - teacher).square(), torch.arange(len(student), device=student.device), groups)


def margin_mse(student: Tensor, teacher: Tensor, groups: Tensor) -> QueryLosses:
    """``((s_i - s_j) - (t_i - t_j))^2`` of all pairs, with ``teacher[N]``.

    A shift of one query's teacher scores changes nothing; a query with one document adds nothing. Mind the magnitude:
    the loss grows with the square of the teacher's scale. Source: Hofstätter et al. 2020, arXiv 2010.02666, equation 2.
    """
    left, right = _pairs(groups)
    errors = student - teacher
    return _by_query((errors[left] - errors[right]).square(), left, groups)


def mean_over_queries(each: QueryLosses, weights: Tensor, by_count: bool = False) -> tuple[Tensor, Tensor]:
    """The sum of the queries' losses and of their weights, whose ratio is the loss of the step.

    Each query that has something to compare weighs its ``weights[B]``; ``by_count``, that times the documents or pairs
    that it has, by which one query of 60 documents has more to say than a hundred of 4.
    """
    weights = weights * (each.counts if by_count else each.counts > 0)
    return (each.losses * weights).sum(), weights.sum()


def _queries(groups: Tensor) -> tuple[Tensor, int]:
    """The number of each document's query, ``[N]`` from 0, and how many there are."""
    known, numbers = torch.unique(groups, return_inverse=True)
    return numbers, len(known)


def _pairs(groups: Tensor) -> Pairs:
    """All pairs of documents of one query. With the documents in the order of their queries, each of a query of n has
    those behind it as its partners: n - 1, n - 2, down to 0."""
    order = torch.argsort(groups, stable=True)
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    ends = sizes.cumsum(0).repeat_interleave(sizes)
    places = torch.arange(len(groups), device=groups.device)
    behind = ends - 1 - places
    left = places.repeat_interleave(behind)
    before = (behind.cumsum(0) - behind).repeat_interleave(behind)
    right = left + 1 + torch.arange(len(left), device=groups.device) - before
    return Pairs(order[left], order[right])


def _ordered(labels: Tensor, groups: Tensor) -> Pairs:
    """The pairs with different labels, the better document first."""
    left, right = _pairs(groups)
    better, worse = labels[left] > labels[right], labels[left] < labels[right]
    return Pairs(torch.cat([left[better], right[worse]]), torch.cat([right[better], left[worse]]))


def _by_query(losses: Tensor, owners: Tensor, groups: Tensor) -> QueryLosses:
    """The means of ``losses[P]`` over those that belong to a query; ``owners[P]`` are documents of it."""
    query, count = _queries(groups)
    counts = _sums(torch.ones_like(losses), query[owners], count)
    return QueryLosses(_sums(losses, query[owners], count) / counts.clamp(min=1), counts)


def _whole(losses: Tensor, groups: Tensor) -> QueryLosses:
    """The sums of ``losses[N]`` over each query, for objectives that compare its whole list at once."""
    sums = _sums(losses, *_queries(groups))
    return QueryLosses(sums, torch.ones_like(sums))


def _sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """``[count]``: of the values with each index."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _logsumexp(values: Tensor, index: Tensor, count: int) -> Tensor:
    """``[count]``: of the values with each index, minus infinity where there are none."""
    empty = torch.full((count,), -torch.inf, dtype=values.dtype, device=values.device)
    highest = empty.scatter_reduce(0, index, values.detach(), "amax")
    shift = torch.where(highest.isfinite(), highest, 0.0)
    return shift + _sums((values - shift[index]).exp(), index, count).log()


def _log_softmax(scores: Tensor, groups: Tensor) -> Tensor:
    """[N], over the documents of each query."""
    query, count = _queries(groups)
    return scores - _logsumexp(scores, query, count)[query]


def _ranks(scores: Tensor, groups: Tensor) -> Tensor:
    """[N]: the rank of each document in its query, from 1; equal scores are in the order of the step."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    places = torch.arange(len(groups), device=groups.device)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.empty_like(places).index_copy(0, order, places - starts + 1)


def _discounts(scores: Tensor, groups: Tensor) -> Tensor:
    """[N]: ``1 / log2(1 + rank)`` of each document in its query."""
    return 1 / torch.log2(1 + _ranks(scores, groups).to(scores.dtype))
