from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from trainer.losses import hybrid_mse, margin_mse, pairwise_logistic, pointwise_mse, weighted_language_loss

GROUPS = tensor([0, 0, 0, 1, 1])
SHIFTS = st.floats(-5, 5, width=32)


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
    for loss in (pairwise_logistic, margin_mse, pointwise_mse):
        assert torch.allclose(loss(student[order], teacher[order], GROUPS[order]), loss(student, teacher, GROUPS))


def test_hybrid_is_the_weighted_sum() -> None:
    student, teacher = scores(1), scores(2)
    expected = 0.25 * pointwise_mse(student, teacher, GROUPS) + 2.0 * margin_mse(student, teacher, GROUPS)
    assert torch.allclose(hybrid_mse(student, teacher, GROUPS, 0.25, 2.0), expected)
    assert hybrid_mse(teacher, teacher, GROUPS, 1.0, 1.0).item() == 0


def test_language_loss_is_the_click_weighted_mean_over_labelled_tokens() -> None:
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
    labels, weights = tensor([[-100, -100, 3, 4, 6]]), tensor([[0.0, 0.0, 1.0, 1.0, 3.0]])
    losses = [-logits[0, place - 1].log_softmax(0)[labels[0, place]] for place in (2, 3, 4)]
    expected = (losses[0] + losses[1] + 3 * losses[2]) / 5
    assert torch.allclose(weighted_language_loss(logits, labels, weights), expected)
