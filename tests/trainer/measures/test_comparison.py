"""Values of systems beside those of trec_eval's own code, which pytrec_eval calls."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.records import Scores
from trainer.measures.comparison import System, compared

# trec_eval's names; it has no reciprocal rank with a cutoff, so that one is of the first documents only.
MEASURES = {
    "nDCG": "ndcg", "nDCG@1": "ndcg_cut_1", "nDCG@3": "ndcg_cut_3", "nDCG@10": "ndcg_cut_10", "RR": "recip_rank",
    "RR@3": "recip_rank", "AP": "map", "AP@5": "map_cut_5", "P@5": "P_5", "R@5": "recall_5", "Rprec": "Rprec",
    "Success@1": "success_1", "nDCG@100": "ndcg_cut_100",
}  # fmt: skip
QUERIES = st.sampled_from("pqr")
GRADES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-2, 4), min_size=1)
# Some are equal, and some are equal in float32 only, in which trec_eval keeps them.
SOME_SCORES = st.sampled_from([0.0, 0.1, 0.1 + 1e-9, 1.0, -3.0]) | st.floats(-1e6, 1e6)
SCORES = st.dictionaries(st.sampled_from("abcdefghij"), SOME_SCORES)


def of_trec_eval(qrels: Scores, run: Scores, measure: str) -> dict[str, float]:
    """0 for a query without documents; labels below 0 bring it down."""
    grades = {query: {doc_id: max(0, int(grade)) for doc_id, grade in of.items()} for query, of in qrels.items()}
    name = MEASURES[measure]
    if measure == "RR@3":  # as trec_eval ranks
        run = {
            query: dict(sorted(of.items(), key=lambda pair: (np.float32(pair[1]), pair[0]), reverse=True)[:3])
            for query, of in run.items()
        }
    family, _, cutoff = name.rpartition("_")
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {f"{family}.{cutoff}" if cutoff.isdecimal() else name})
    values = evaluator.evaluate({query: documents for query, documents in run.items() if documents})
    return {query: values[query][name] if query in values else 0.0 for query in qrels}


@settings(max_examples=300)
@given(
    st.dictionaries(QUERIES, GRADES, min_size=1),
    st.dictionaries(QUERIES, SCORES),
    st.lists(st.sampled_from(sorted(MEASURES)), min_size=1, max_size=2, unique=True),
)
def test_measures_are_those_of_trec_eval(qrels: Scores, run: Scores, measures: list[str]) -> None:
    """Ties, queries and documents without scores, documents without labels, labels below 0."""
    (result,) = compared([System("s", run)], qrels, measures)
    for measure in measures:
        expected = of_trec_eval(qrels, run, measure)
        assert result.values[measure] == pytest.approx(expected, abs=1e-9), measure
        assert result.row[measure.lower()] == pytest.approx(sum(expected.values()) / len(expected), abs=1e-9)
