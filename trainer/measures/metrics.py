"""Ranking metrics: nDCG, the other measures of ir_measures, and PNR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import numpy.typing as npt

from client.agreement import kendall_tau as tau_b
from trainer.data.records import DataError, QueryGroup, Scores

FloatArray = npt.NDArray[np.float64]
MEASURE = "nDCG@10"  # what checkpoints, engines and systems are judged by
HIGHEST_GRADE = 100_000


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
    """``measure`` (``nDCG@10``, ``RR@10``: names of ir_measures) of each judged query, 0 for a query without scores.

    As trec_eval has it, ties in the scores are broken by document id, the gain of nDCG is the label, and a label below
    0 (spam) counts as 0. Raises DataError for a measure that does not exist, that cannot be computed here, or that
    needs whole labels where some are not.
    """
    parsed = _parsed(measure)
    values = dict.fromkeys(qrels, 0.0)
    run = {query_id: documents for query_id, documents in scores.items() if query_id in qrels and documents}
    if parsed.NAME == "nDCG" and set(parsed.params) <= {"cutoff"}:
        return values | {query: ndcg(qrels[query], run[query], parsed.params.get("cutoff")) for query in run}
    grades = {query_id: _grades(query_id, documents, measure) for query_id, documents in qrels.items()}
    # Programs that ir_measures calls, its RR@10 among them, break ties in other ways: they get none.
    ranks = {query_id: {each: -rank for rank, each in enumerate(ranked(run[query_id]))} for query_id in run}
    try:
        calculated = list(ir_measures.iter_calc([parsed], grades, ranks))
    except Exception as error:  # some measures are programs of other people's that are not installed
        raise DataError(f"the measure {measure} cannot be computed here: {' '.join(str(error).split())}") from error
    return values | {metric.query_id: float(metric.value) for metric in calculated}


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids as trec_eval ranks them: best first, and of equal scores the last id first.

    It keeps scores in float32, so those that are equal there are ties.
    """
    return sorted(scores, key=lambda doc_id: (np.float32(scores[doc_id]), doc_id), reverse=True)


def ndcg(labels: Mapping[str, float], scores: Mapping[str, float], cutoff: int | None = None) -> float:
    """nDCG of one query as trec_eval computes it, for labels that may have fractions; 0 where no label is above 0.

    Source: Järvelin and Kekäläinen 2002, with the discount ``1 / log2(1 + rank)``.
    """
    gains = [max(0.0, labels.get(doc_id, 0.0)) for doc_id in ranked(scores)[:cutoff]]
    ideal = _dcg(sorted((max(0.0, label) for label in labels.values()), reverse=True)[:cutoff])
    return _dcg(gains) / ideal if ideal else 0.0


def pair_counts(labels: npt.ArrayLike, scores: npt.ArrayLike) -> PairCounts:
    """Counts over the pairs of one query: ``labels[N]``, ``scores[N]``."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    order = np.sign(label[:, None] - label[None, :]) * np.sign(score[:, None] - score[None, :])
    differ = np.triu(label[:, None] != label[None, :])
    return PairCounts(int((order[differ] > 0).sum()), int((order[differ] < 0).sum()), int((order[differ] == 0).sum()))


def pnr(counts: Sequence[PairCounts]) -> float:
    """Positive-negative ratio: concordant over discordant pairs, pooled over queries (arXiv 2411.04539, section 4).

    Pairs with equal scores are in neither count: report their number beside it. Infinite without a discordant pair,
    NaN without any.
    """
    return float(_ratio(_table(counts).sum(axis=0)))


def mean_pnr(counts: Sequence[PairCounts]) -> float:
    """The mean over queries of each query's own ratio, as other papers have it (Zou et al. 2021, arXiv 2105.11108).

    A query without a discordant pair counts as if it had one, since its own ratio is infinite; one without pairs in
    either count is left out, and NaN stands for none.
    """
    ratios = _ratios(counts)
    return float(ratios.mean()) if len(ratios) else float("nan")


def kendall_tau(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Kendall's tau-b of two score lists of one query.

    Where a list has no order, being one score or all ties, it is 1 for equal lists and lists of one, else 0.
    """
    value = tau_b(np.asarray(left), np.asarray(right))
    return float(len(np.asarray(left)) < 2 or np.array_equal(left, right)) if np.isnan(value) else value


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of the mean, resampling queries: ``values[B]``, one a query."""
    data = np.asarray(values, dtype=np.float64)
    return _interval(data[_resamples(len(data), seed, samples)].mean(axis=1))


def pnr_interval(counts: Sequence[PairCounts], seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of ``pnr``, resampling queries; NaN without any."""
    table = _table(counts)
    if not len(table):
        return math.nan, math.nan
    return _interval(_ratio(table[_resamples(len(table), seed, samples)].sum(axis=1)))


def mean_pnr_interval(counts: Sequence[PairCounts], seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of ``mean_pnr``, resampling queries."""
    ratios = _ratios(counts)
    return bootstrap_interval(ratios, seed, samples) if len(ratios) else (float("nan"), float("nan"))


def _interval(estimates: FloatArray) -> tuple[float, float]:
    """The values may be infinite, so nothing is interpolated; those that are not a number are left out."""
    known = estimates[~np.isnan(estimates)]
    low, high = np.percentile(known, [2.5, 97.5], method="nearest") if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _table(counts: Sequence[PairCounts]) -> FloatArray:
    """The concordant and the discordant pairs of each query, [B, 2]."""
    return np.array([count[:2] for count in counts], dtype=np.float64).reshape(-1, 2)


def _ratio(pairs: FloatArray) -> FloatArray:
    """Concordant over discordant of ``pairs[..., 2]``: infinite without a discordant one, NaN without any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = np.divide(pairs[..., 0], pairs[..., 1])
    return ratio


def _ratios(counts: Sequence[PairCounts]) -> FloatArray:
    """Each query's own ratio, for those with a pair in either count."""
    return np.array([each.concordant / max(each.discordant, 1) for each in counts if each.concordant + each.discordant])


def _dcg(gains: Sequence[float]) -> float:
    return float(np.sum(np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))))


def _parsed(measure: str) -> Any:
    try:
        parsed: Any = ir_measures.parse_measure(measure)
        parsed.validate_params()
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{measure!r} is not a measure of ir_measures: {error}") from error
    if parsed.params.get("cutoff", 1) < 1:  # trec_eval ends the process
        raise DataError(f"{measure!r} looks at no document: the number behind @ is at least 1")
    return parsed


def _grades(query_id: str, labels: Mapping[str, float], measure: str) -> dict[str, int]:
    """Whole grades of at least 0. trec_eval counts the documents of each grade in a table as long as the highest."""
    for doc_id, label in labels.items():
        if label != int(label) or label > HIGHEST_GRADE:
            raise DataError(
                f"{measure} needs whole labels of at most {HIGHEST_GRADE:,}, and that of document {doc_id!r} of query "
                f"{query_id!r} is {label:g}; nDCG takes any"
            )
    return {doc_id: max(0, int(label)) for doc_id, label in labels.items()}


def _resamples(size: int, seed: int, samples: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, size, (samples, size))
