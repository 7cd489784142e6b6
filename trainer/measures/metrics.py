"""Ranking metrics: nDCG and MRR from ir_measures, and PNR.

nDCG has linear gain, as in trec_eval. A grade below 0 (spam) counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ir_measures
import numpy as np
import numpy.typing as npt

from client.agreement import kendall_tau as tau_b
from trainer.data.records import DataError, QueryGroup, Scores

FloatArray = npt.NDArray[np.float64]
MEASURE = "nDCG@10"  # what checkpoints, engines and systems are judged by


class PairCounts(NamedTuple):
    """Pairs of one query's documents with different labels."""

    concordant: int
    discordant: int
    tied: int  # equal scores


def judgments(groups: Sequence[QueryGroup]) -> Scores:
    """The labels of the groups, for those queries that have any."""
    labels = {
        group.query_id: {document.doc_id: document.label for document in group.documents if document.label is not None}
        for group in groups
    }
    return {query_id: documents for query_id, documents in labels.items() if documents}


def per_query(qrels: Scores, scores: Scores, measure: str) -> dict[str, float]:
    """``measure`` (``nDCG@10``, ``RR@10``: names of ir_measures) of each judged query, 0 for a query
    without scores. Ties in the scores are broken by document id, as in trec_eval."""
    try:
        parsed = ir_measures.parse_measure(measure)
    except (NameError, ValueError, TypeError) as error:
        raise DataError(f"{measure!r} is not a measure of ir_measures: {error}") from error
    grades = {
        query_id: {doc_id: max(0, round(grade)) for doc_id, grade in documents.items()}
        for query_id, documents in qrels.items()
    }
    values = dict.fromkeys(qrels, 0.0)
    run = {query_id: documents for query_id, documents in scores.items() if query_id in qrels and documents}
    for metric in ir_measures.iter_calc([parsed], grades, run):
        values[metric.query_id] = float(metric.value)
    return values


def pair_counts(labels: npt.ArrayLike, scores: npt.ArrayLike) -> PairCounts:
    """Counts over the pairs of one query: ``labels[N]``, ``scores[N]``."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    order = np.sign(label[:, None] - label[None, :]) * np.sign(score[:, None] - score[None, :])
    differ = np.triu(label[:, None] != label[None, :])
    return PairCounts(int((order[differ] > 0).sum()), int((order[differ] < 0).sum()), int((order[differ] == 0).sum()))


def pnr(counts: Sequence[PairCounts]) -> float:
    """Positive-negative ratio: concordant over discordant pairs, pooled over queries (arXiv 2411.04539,
    section 4). Pairs with equal scores are in neither count: report their number beside it."""
    concordant, discordant = sum(count.concordant for count in counts), sum(count.discordant for count in counts)
    return concordant / discordant if discordant else float("inf") if concordant else float("nan")


def kendall_tau(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Kendall's tau-b of two score lists of one query.

    Where a list has no order, being one score or all ties, it is 1 for equal lists and lists of one, else 0.
    """
    value = tau_b(np.asarray(left), np.asarray(right))
    return float(len(np.asarray(left)) < 2 or np.array_equal(left, right)) if np.isnan(value) else value


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of the mean, resampling queries: ``values[B]``, one a query."""
    data = np.asarray(values, dtype=np.float64)
    means = data[_resamples(len(data), seed, samples)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def pnr_interval(counts: Sequence[PairCounts], seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of the pooled PNR, resampling queries."""
    table = np.array([(count.concordant, count.discordant) for count in counts], dtype=np.float64)
    sums = table[_resamples(len(table), seed, samples)].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / np.maximum(sums[:, 1], 1), [2.5, 97.5])
    return float(low), float(high)


def _resamples(size: int, seed: int, samples: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, size, (samples, size))
