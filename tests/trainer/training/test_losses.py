from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.cross_encoder import losses as theirs
from torch import Tensor, nn, tensor

from trainer.training.losses import (
    hybrid_mse,
    kl_divergence,
    lambda_rank,
    listwise_softmax,
    margin_mse,
    mixed_with_labels,
    pairwise_hinge,
    pairwise_logistic,
    pointwise_mse,
    weighted_mean,
)

GROUPS = tensor([0, 0, 0, 1, 1])
SHIFTS = st.floats(-5, 5, width=32)


ALL = (
    pairwise_logistic, pairwise_hinge, lambda_rank, listwise_softmax, margin_mse, pointwise_mse, kl_divergence,
)  # fmt: skip
LABELS = tensor([0.0, 2.0, 1.0, 1.0, 0.0])


class FixedScores(nn.Module):
    """Stands for the model of a sentence-transformers loss. It scores document ``"3"`` with ``scores[3]``."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.num_labels, self.device = scores, 1, scores.device

    def preprocess(self, pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"numbers": tensor([int(document) for _, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.scores[features["numbers"]]}


def fixed(scores: Tensor) -> Any:
    return FixedScores(scores)


def reference(loss: Any, student: Tensor, labels: Tensor) -> Tensor:
    """Their loss on the queries of GROUPS."""
    documents = [["0", "1", "2"], ["3", "4"]]
    value: Tensor = loss([["a", "b"], documents], [labels[:3], labels[3:]])
    return value


def scores(seed: int) -> Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(seed))


def test_pairwise_logistic_by_hand() -> None:
    # Query 0 has one pair with an order (2 over 1), query 1 another (3 over 1): margins 1.0 and -0.5.
    student = tensor([2.0, 1.0, 0.0, 0.5])
    loss = pairwise_logistic(student, tensor([2.0, 1.0, 1.0, 3.0]), tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx((0.313262 + 0.474077) / 2, abs=1e-5)


def test_pairwise_logistic_equals_margin_by_margin_cross_entropy() -> None:
    student, labels = scores(0), tensor([0.0, 2.0, 1.0, 1.0, 0.0])
    pairs = [(1, 0), (1, 2), (2, 0), (3, 4)]
    margins = torch.stack([student[better] - student[worse] for better, worse in pairs])
    reference = torch.nn.functional.binary_cross_entropy_with_logits(margins, torch.ones(4))
    assert torch.allclose(pairwise_logistic(student, labels, GROUPS), reference)


def test_pairwise_logistic_equals_sentence_transformers() -> None:
    student = scores(0)
    loss = theirs.LambdaLoss(fixed(student), weighting_scheme=None, reduction_log="natural")
    assert torch.allclose(pairwise_logistic(student, LABELS, GROUPS), reference(loss, student, LABELS))


def test_gap_weights_weigh_each_pair_by_its_labels() -> None:
    # Margins 1 (labels 3 over 1) and -2 (labels 1 over 0) and -1 (3 over 0).
    student, labels, groups = tensor([0.0, -1.0, 1.0]), tensor([3.0, 1.0, 0.0]), tensor([0, 0, 0])
    softplus = [0.313262, 2.126928, 1.313262]
    weighted = (2 * softplus[0] + 1 * softplus[1] + 3 * softplus[2]) / 3
    assert pairwise_logistic(student, labels, groups, gap_weights=True).item() == pytest.approx(weighted, abs=1e-5)
    hinge = (2 * 0 + 1 * 3 + 3 * 2) / 3
    assert pairwise_hinge(student, labels, groups, gap_weights=True).item() == pytest.approx(hinge)


def test_pairwise_hinge_equals_torch_on_listed_pairs() -> None:
    student = scores(0)
    better, worse = tensor([1, 1, 2, 3]), tensor([0, 2, 0, 4])
    listed = nn.MarginRankingLoss(margin=0.7)(student[better], student[worse], torch.ones(4))
    assert torch.allclose(pairwise_hinge(student, LABELS, GROUPS, margin=0.7), listed)


def test_lambda_rank_by_hand() -> None:
    # Scores rank the documents 2, 0, 1; labels 0, 2, 1: the ideal DCG is 2 + 1 / log2(3) = 2.630930.
    student, labels = tensor([0.0, -1.0, 1.0]), tensor([0.0, 2.0, 1.0])
    discounts = [0.630930, 0.5, 1.0]
    pairs = [(1, 0, 1.313262), (1, 2, 2.126928), (2, 0, 0.313262)]  # better, worse, softplus of -margin
    terms = [
        (labels[i] - labels[j]).item() * abs(discounts[i] - discounts[j]) / 2.630930 * loss for i, j, loss in pairs
    ]
    assert lambda_rank(student, labels, tensor([0, 0, 0])).item() == pytest.approx(sum(terms) / 3, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_lambda_rank_equals_sentence_transformers(seed: int) -> None:
    student = scores(seed)
    loss = theirs.LambdaLoss(fixed(student), theirs.LambdaRankScheme(), reduction_log="natural")
    # Their gain is 2^label - 1, ours the label.
    assert torch.allclose(lambda_rank(student, LABELS, GROUPS), reference(loss, student, torch.log2(1 + LABELS)))


def test_lambda_rank_without_gain_is_no_loss() -> None:
    assert lambda_rank(scores(0), tensor([-2.0, 0.0, -2.0, 0.0, 0.0]), GROUPS).item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_listwise_softmax_equals_sentence_transformers(seed: int) -> None:
    student = scores(seed)
    loss = theirs.ListNetLoss(fixed(student))
    assert torch.allclose(listwise_softmax(student, LABELS, GROUPS), reference(loss, student, LABELS))


def test_listwise_softmax_by_hand() -> None:
    # One query; labels 1, 0 give 0.731059, 0.268941; scores 0, 0 give a half each: cross entropy log 2.
    assert listwise_softmax(torch.zeros(2), tensor([1.0, 0.0]), tensor([7, 7])).item() == pytest.approx(0.693147)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_equals_torch_query_by_query(temperature: float) -> None:
    student, teacher = scores(1), scores(2)
    each = [
        nn.KLDivLoss(reduction="sum")(
            (student[part] / temperature).log_softmax(0), (teacher[part] / temperature).softmax(0)
        )
        for part in (slice(3), slice(3, 5))
    ]
    expected = temperature**2 * sum(each) / 2
    assert torch.allclose(kl_divergence(student, teacher, GROUPS, temperature), expected)


@given(SHIFTS)
def test_kl_ignores_a_shift_of_one_query(shift: float) -> None:
    student, teacher = scores(1), scores(2)
    shifted = teacher + tensor([shift] * 3 + [0.0] * 2)
    expected = kl_divergence(student, teacher, GROUPS)
    assert torch.allclose(kl_divergence(student, shifted, GROUPS), expected, atol=1e-5)
    assert kl_divergence(shifted, teacher, GROUPS).item() == pytest.approx(0, abs=1e-5)


def test_labels_are_mixed_in_where_there_are_any() -> None:
    student, labels = scores(1), tensor([0.0, torch.nan, 2.0, torch.nan, torch.nan])
    judged = pairwise_logistic(student[[0, 2]], tensor([0.0, 2.0]), tensor([0, 0]))
    mixed = mixed_with_labels(tensor(3.0), student, labels, GROUPS, weight=0.25)
    assert torch.allclose(mixed, 0.75 * tensor(3.0) + 0.25 * judged)


def test_no_pair_to_order_is_no_loss_and_no_gradient() -> None:
    student = scores(0).requires_grad_()
    loss = pairwise_logistic(student, torch.ones(5), GROUPS)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert not gradient.any()


def test_margin_mse_by_hand() -> None:
    # Differences student - teacher are 0, 1, 3 | 2, 2: squared pair differences 1, 9, 4 | 0, mean 14 / 4.
    student = tensor([0.0, 1.0, 3.0, 2.0, 2.0])
    assert margin_mse(student, torch.zeros(5), GROUPS).item() == pytest.approx(3.5)


def test_margin_mse_equals_the_loss_on_listed_triples() -> None:
    student, teacher = scores(1), scores(2)
    left, right = tensor([0, 0, 1, 3]), tensor([1, 2, 2, 4])
    reference = torch.nn.MSELoss()(student[left] - student[right], teacher[left] - teacher[right])
    assert torch.allclose(margin_mse(student, teacher, GROUPS), reference)


@given(SHIFTS, SHIFTS)
def test_margin_mse_ignores_a_shift_of_one_query_and_pointwise_does_not(first: float, second: float) -> None:
    student, teacher = scores(1), scores(2)
    shifted = teacher + tensor([first] * 3 + [second] * 2)
    assert torch.allclose(margin_mse(student, shifted, GROUPS), margin_mse(student, teacher, GROUPS), atol=1e-4)
    if abs(first) > 0.1:
        matched = pointwise_mse(teacher + tensor([first] * 5), teacher, GROUPS)
        assert matched.item() == pytest.approx(first**2, rel=1e-3)


@given(st.permutations(range(5)))
def test_losses_do_not_depend_on_the_order_of_pairs(order: list[int]) -> None:
    student, teacher = scores(1), scores(2)
    for loss in ALL:
        assert torch.allclose(loss(student[order], teacher[order], GROUPS[order]), loss(student, teacher, GROUPS))


def test_hybrid_is_the_weighted_sum() -> None:
    student, teacher = scores(1), scores(2)
    expected = 0.25 * pointwise_mse(student, teacher, GROUPS) + 2.0 * margin_mse(student, teacher, GROUPS)
    assert torch.allclose(hybrid_mse(student, teacher, GROUPS, 0.25, 2.0), expected)
    assert hybrid_mse(teacher, teacher, GROUPS, 1.0, 1.0).item() == 0


def test_tokens_are_weighted_by_the_clicks_of_their_pair() -> None:
    losses, weights = tensor([[0.0, 0.0, 2.0, 1.0, 4.0]]), tensor([[0.0, 0.0, 1.0, 1.0, 3.0]])
    assert weighted_mean(losses, weights).item() == pytest.approx((2 + 1 + 3 * 4) / 5)
