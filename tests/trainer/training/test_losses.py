from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.cross_encoder import losses as theirs
from torch import Tensor, nn, tensor

from bench.memory import Peak
from trainer.training import losses
from trainer.training.losses import mean_over_queries

GROUPS = tensor([0, 0, 0, 1, 1])
SHIFTS = st.floats(-5, 5, width=32)


def mean(objective: Callable[..., losses.QueryLosses]) -> Callable[..., Tensor]:
    """The objective's loss of a step."""

    def value(*tensors: Tensor, by_count: bool = False, **settings: Any) -> Tensor:
        each = objective(*tensors, **settings)
        total, weight = mean_over_queries(each, torch.ones_like(each.losses), by_count)
        return total / weight.clamp(min=1)

    return value


NAMES = (
    "pairwise_logistic", "pairwise_hinge", "lambda_rank", "listwise_softmax", "margin_mse", "pointwise_mse",
    "kl_divergence", "list_mle", "localized_contrastive", "binary_cross_entropy", "adr_mse",
)  # fmt: skip
ALL = {name: mean(getattr(losses, name)) for name in NAMES}
(
    pairwise_logistic, pairwise_hinge, lambda_rank, listwise_softmax, margin_mse, pointwise_mse, kl_divergence,
    list_mle, localized_contrastive, binary_cross_entropy, adr_mse,
) = ALL.values()  # fmt: skip
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
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    assert torch.allclose(
        pairwise_logistic(student, labels, GROUPS, by_count=True), cross_entropy(margins, torch.ones(4))
    )
    by_query = (cross_entropy(margins[:3], torch.ones(3)) + cross_entropy(margins[3:], torch.ones(1))) / 2
    assert torch.allclose(pairwise_logistic(student, labels, GROUPS), by_query)


def test_pairwise_logistic_equals_sentence_transformers() -> None:
    student = scores(0)
    loss = theirs.LambdaLoss(fixed(student), weighting_scheme=None, reduction_log="natural")
    assert torch.allclose(pairwise_logistic(student, LABELS, GROUPS, by_count=True), reference(loss, student, LABELS))


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
    assert torch.allclose(pairwise_hinge(student, LABELS, GROUPS, margin=0.7, by_count=True), listed)


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
    theirs_of_labels = reference(loss, student, torch.log2(1 + LABELS))  # their gain is 2^label - 1, ours the label
    assert torch.allclose(lambda_rank(student, LABELS, GROUPS, by_count=True), theirs_of_labels)


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


def test_documents_that_nobody_judged_are_in_no_pair() -> None:
    student, labels = scores(1), tensor([0.0, torch.nan, 2.0, torch.nan, torch.nan])
    judged = pairwise_logistic(student[[0, 2]], tensor([0.0, 2.0]), tensor([0, 0]))
    assert torch.allclose(pairwise_logistic(student, labels, GROUPS), judged)


def test_no_pair_to_order_is_no_loss_and_no_gradient() -> None:
    student = scores(0).requires_grad_()
    loss = pairwise_logistic(student, torch.ones(5), GROUPS)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert not gradient.any()


def test_margin_mse_by_hand() -> None:
    # Differences student - teacher are 0, 1, 3 | 2, 2: squared pair differences 1, 9, 4 | 0.
    student = tensor([0.0, 1.0, 3.0, 2.0, 2.0])
    assert margin_mse(student, torch.zeros(5), GROUPS).item() == pytest.approx((14 / 3 + 0) / 2)
    assert margin_mse(student, torch.zeros(5), GROUPS, by_count=True).item() == pytest.approx(14 / 4)


def test_margin_mse_equals_the_loss_on_listed_triples() -> None:
    student, teacher = scores(1), scores(2)
    left, right = tensor([0, 0, 1, 3]), tensor([1, 2, 2, 4])
    reference = torch.nn.MSELoss()(student[left] - student[right], teacher[left] - teacher[right])
    assert torch.allclose(margin_mse(student, teacher, GROUPS, by_count=True), reference)


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
    for loss in ALL.values():
        assert torch.allclose(loss(student[order], teacher[order], GROUPS[order]), loss(student, teacher, GROUPS))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_step_is_the_mean_of_its_queries(sizes: list[int], seed: int) -> None:
    """Value and gradient of the queries together are the mean of each alone, over those with something to compare."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    student = torch.randn(total, generator=draw, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 3, (total,), generator=draw).double()
    groups = torch.arange(len(sizes)).repeat_interleave(tensor(sizes))
    parts = torch.split(torch.arange(total), sizes)
    for name in NAMES:
        objective = getattr(losses, name)
        alone = [objective(student[part], labels[part], groups[part]) for part in parts]
        compared = [each.losses[0] for each in alone if each.counts[0]]
        expected = torch.stack(compared).mean() if compared else student.sum() * 0
        value = ALL[name](student, labels, groups)
        assert torch.allclose(value, expected, atol=1e-12), name
        ours, theirs_alone = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (value, expected))
        assert torch.allclose(ours, theirs_alone, atol=1e-9), name


def test_a_query_of_sixty_documents_weighs_as_one_of_four() -> None:
    sizes = tensor([60, *[4] * 9])
    groups = torch.arange(10).repeat_interleave(sizes)
    draw = torch.Generator().manual_seed(0)
    student, labels = torch.randn(96, generator=draw).requires_grad_(), torch.randn(96, generator=draw)
    for by_count, lowest, highest in ((False, 0.02, 0.3), (True, 0.9, 1.0)):
        (gradient,) = torch.autograd.grad(pairwise_logistic(student, labels, groups, by_count=by_count), student)
        assert lowest < (gradient[:60].abs().sum() / gradient.abs().sum()).item() < highest


def test_memory_grows_with_the_pairs_within_queries() -> None:
    """Squares of all 40,000 documents would take gigabytes."""
    groups = torch.arange(4000).repeat_interleave(10)
    student = torch.randn(40_000).requires_grad_()
    for name, loss in ALL.items():
        with Peak() as peak:
            torch.autograd.backward(loss(student, torch.randn(40_000), groups))
        assert peak.bytes < 100e6, name


def test_discount_weighs_a_pair_by_the_rank_of_its_better_document() -> None:
    # The teacher's order is 1, 2, 0: pairs of rank 1 over 2 and 3, and of 2 over 3.
    student, teacher, groups = tensor([0.0, 0.0, 0.0]), tensor([1.0, 3.0, 2.0]), tensor([0, 0, 0])
    expected = 0.693147 * (1 + 1 + 0.630930) / 3
    assert pairwise_logistic(student, teacher, groups, discount=True).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_adr_mse_equals_sentence_transformers(seed: int) -> None:
    student = scores(seed)
    one = torch.zeros(5, dtype=torch.long)
    value: Tensor = theirs.ADRMSELoss(fixed(student))([["a"], [["0", "1", "2", "3", "4"]]], [LABELS])
    assert torch.allclose(adr_mse(student, LABELS, one), value)


@pytest.mark.parametrize("seed", range(3))
def test_list_mle_equals_sentence_transformers(seed: int) -> None:
    student, labels = scores(seed), tensor([0.0, 2.0, 1.0, 4.0, 3.0])
    one = torch.zeros(5, dtype=torch.long)
    loss = theirs.ListMLELoss(fixed(student), respect_input_order=False)
    value: Tensor = loss([["a"], [["0", "1", "2", "3", "4"]]], [labels])
    assert torch.allclose(list_mle(student, labels, one), value / 5)  # theirs is the sum


def test_binary_cross_entropy_equals_torch_with_labels_of_0_to_1() -> None:
    student, one = scores(0), torch.zeros(5, dtype=torch.long)
    expected = nn.BCEWithLogitsLoss()(student, tensor([0.0, 1.0, 0.4, 1.0, 0.0]))
    assert torch.allclose(binary_cross_entropy(student, tensor([-2.0, 1.0, 0.4, 3.0, 0.0]), one), expected)


def test_localized_contrastive_equals_cross_entropy_over_a_positive_and_the_negatives() -> None:
    student = scores(0)
    lists = [student[[1, 0]], student[[2, 0]], student[[3, 4]]]
    first, second, third = (nn.CrossEntropyLoss()(each, tensor(0)) for each in lists)
    assert torch.allclose(localized_contrastive(student, LABELS, GROUPS), ((first + second) / 2 + third) / 2)
    for labels in (torch.ones(5), torch.zeros(5)):
        loss = localized_contrastive(student.clone().requires_grad_(), labels, GROUPS)
        torch.autograd.backward(loss)
        assert loss.item() == 0
