from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from trainer.data.records import DataError
from trainer.measures.metrics import (
    PairCounts,
    bootstrap_interval,
    kendall_tau,
    mean_pnr,
    mean_pnr_interval,
    ndcg,
    pair_counts,
    per_query,
    pnr,
    pnr_interval,
)


def test_ndcg_by_hand_with_linear_gain() -> None:
    qrels = {"q": {"a": 3.0, "b": 2.0, "c": 0.0}}
    value = per_query(qrels, {"q": {"a": 1.0, "b": 3.0, "c": 2.0}}, "nDCG@10")["q"]
    assert value == pytest.approx((2 + 3 / 2) / (3 + 2 / math.log2(3)))


def test_spam_counts_as_irrelevant_and_a_query_without_scores_as_zero() -> None:
    qrels = {"q": {"a": -2.0, "b": 1.0}, "unscored": {"a": 1.0}}
    values = per_query(qrels, {"q": {"a": 0.0, "b": 1.0}}, "RR@10")
    assert values == {"q": 1.0, "unscored": 0.0}


GRADES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-2, 4), min_size=1)
# Some are equal, and some are equal in float32 only, in which trec_eval keeps them.
SCORES = st.dictionaries(
    st.sampled_from("abcdefghij"), st.sampled_from([0.0, 0.1, 0.1 + 1e-9, 1.0, -3.0]) | st.floats(-1e6, 1e6), min_size=1
)


@given(GRADES, SCORES, st.sampled_from([0.125, 0.5, 3.0]))
def test_ndcg_is_the_same_whatever_the_unit_of_the_labels(
    grades: dict[str, int], scores: dict[str, float], unit: float
) -> None:
    """So that of labels with fractions is trec_eval's, too."""
    fractions = {doc_id: grade * unit for doc_id, grade in grades.items()}
    assert ndcg(fractions, scores, 5) == pytest.approx(ndcg(grades, scores, 5), abs=1e-12)


@pytest.mark.parametrize("measure", ["RR@10", "AP", "P@5", "Judged@10", "nDCG(judged_only=True)@5"])
def test_measures_of_whole_grades_refuse_fractions(measure: str) -> None:
    with pytest.raises(DataError, match=rf"^{re.escape(measure)} needs whole labels.* 'a' of query 'q' is 0\.5"):
        per_query({"q": {"a": 0.5}}, {}, measure)


def test_pnr_by_hand() -> None:
    counts = pair_counts([2, 1, 0, 0], [0.9, 0.1, 0.5, 0.1])
    assert counts == PairCounts(concordant=3, discordant=1, tied=1)
    assert pnr([counts, PairCounts(1, 1, 0)]) == 2.0
    assert pnr([PairCounts(2, 0, 0)]) == math.inf
    assert math.isnan(pnr([PairCounts(0, 0, 3)]))
    assert pnr_interval([PairCounts(2, 0, 0)]) == (math.inf, math.inf)
    assert mean_pnr([PairCounts(3, 1, 1), PairCounts(1, 1, 0), PairCounts(4, 0, 0), PairCounts(0, 0, 9)]) == 8 / 3
    assert all(map(math.isnan, (mean_pnr([PairCounts(0, 0, 1)]), pnr([]), *pnr_interval([]), *mean_pnr_interval([]))))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=12))
def test_pair_counts_agree_with_a_plain_loop(documents: list[tuple[int, int]]) -> None:
    expected = [0, 0, 0]
    for index, (label, score) in enumerate(documents):
        for other_label, other_score in documents[:index]:
            if label != other_label:
                sign = (label - other_label) * (score - other_score)
                expected[0 if sign > 0 else 1 if sign < 0 else 2] += 1
    assert list(pair_counts(*zip(*documents, strict=True))) == expected


def test_kendall_tau_of_lists_without_an_order() -> None:
    assert kendall_tau([1.0], [2.0]) == 1.0
    assert kendall_tau([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert kendall_tau([1.0, 1.0], [1.0, 2.0]) == 0.0
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(kendalltau([1, 2, 3, 4], [1, 3, 2, 4]).statistic)


def test_bootstrap_intervals_hold_the_mean_and_narrow_with_more_queries() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 10)
    narrow_low, narrow_high = bootstrap_interval([0.0, 1.0] * 1000)
    assert low < narrow_low < 0.5 < narrow_high < high
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    low, high = pnr_interval([PairCounts(30, 10, 0), PairCounts(20, 10, 0), PairCounts(10, 10, 0)])
    assert low < 2.0 < high
