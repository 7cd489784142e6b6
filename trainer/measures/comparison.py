"""Systems compared on the same judged queries: values of each query, means and differences with intervals, a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from trainer.data.records import Scores
from trainer.measures.metrics import (
    PairCounts,
    bootstrap_interval,
    mean_pnr,
    mean_pnr_interval,
    pair_counts,
    per_query,
    pnr,
    pnr_interval,
)


@dataclass(frozen=True)
class System:
    """A system that has ranked the queries."""

    name: str
    scores: Scores
    documents_per_second: float | None = None  # None where the scores were in a file
    other_queries: int = 0  # that the file has, and the judged queries have not

    def scored(self, qrels: Scores) -> int:
        """The judged queries that the system has scores for."""
        return sum(bool(self.scores.get(query_id)) for query_id in qrels)


@dataclass(frozen=True)
class SystemResult:
    """One system on all judged queries."""

    name: str
    values: dict[str, dict[str, float]]  # measure -> query_id -> value
    counts: dict[str, PairCounts]  # query_id -> of the pairs that PNR compares; no other queries
    row: dict[str, Any]  # as it is reported

    def lines(self) -> Iterator[dict[str, Any]]:
        """The values of each query, and the pairs of documents with different labels that count."""
        for query_id in next(iter(self.values.values())):
            pairs = self.counts.get(query_id, PairCounts(0, 0, 0))._asdict()
            yield {
                "system": self.name,
                "query_id": query_id,
                **{measure.lower(): column[query_id] for measure, column in self.values.items()},
                **{f"{name}_pairs": count for name, count in pairs.items()},
            }


def compared(
    systems: Sequence[System], qrels: Scores, measures: Sequence[str], baseline: str | None = None, seed: int = 0
) -> list[SystemResult]:
    """The systems on the judged queries, each with its differences from the ``baseline``, one of them, if given.

    Intervals are of 95%, by bootstrap over queries. Raises DataError as ``per_query`` does.
    """
    shared = _scored_by_all(systems, qrels)
    results = [_result(system, qrels, measures, shared, seed) for system in systems]
    for base in (result for result in results if result.name == baseline):
        for result in results:
            result.row.update(differences(result, base, seed))
    return results


def _scored_by_all(systems: Sequence[System], qrels: Scores) -> dict[str, list[str]]:
    """The judged documents of each query that every system scored: what PNR compares."""
    return {
        query_id: [doc_id for doc_id in labels if all(doc_id in system.scores.get(query_id, {}) for system in systems)]
        for query_id, labels in qrels.items()
    }


def _result(
    system: System, qrels: Scores, measures: Sequence[str], shared: dict[str, list[str]], seed: int
) -> SystemResult:
    values = {measure: per_query(qrels, system.scores, measure) for measure in measures}
    counts = {
        query_id: pair_counts(*([of[query_id][doc_id] for doc_id in doc_ids] for of in (qrels, system.scores)))
        for query_id, doc_ids in shared.items()
        if doc_ids
    }
    row = {"system": system.name, "queries": len(qrels), "queries_scored": system.scored(qrels)}
    row |= _summary(values, counts, seed)
    return SystemResult(system.name, values, counts, {**row, "documents_per_second": system.documents_per_second})


def mean_of_runs(name: str, runs: Sequence[SystemResult], seed: int = 0) -> SystemResult:
    """Several runs of one system on the same queries, such as those of several seeds, as one system.

    The value of a query is the mean over the runs, and its pairs are those of all of them.
    """
    values = {
        measure: {query_id: float(np.mean([run.values[measure][query_id] for run in runs])) for query_id in column}
        for measure, column in runs[0].values.items()
    }
    counts = {
        query_id: PairCounts(*map(sum, zip(*(run.counts[query_id] for run in runs), strict=True)))
        for query_id in runs[0].counts
    }
    return SystemResult(name, values, counts, {"system": name, "runs": len(runs), **_summary(values, counts, seed)})


def _summary(values: dict[str, dict[str, float]], counts: dict[str, PairCounts], seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for measure, column in values.items():
        row |= _mean(measure.lower(), list(column.values()), seed)
    return row | _ratios(list(counts.values()), seed)


def _mean(name: str, values: Sequence[float], seed: int) -> dict[str, Any]:
    return {name: float(np.mean(values)), f"{name}_interval": bootstrap_interval(values, seed)}


def _ratios(counts: Sequence[PairCounts], seed: int) -> dict[str, Any]:
    return {
        "pnr": pnr(counts),
        "pnr_interval": pnr_interval(counts, seed),
        "mean_pnr": mean_pnr(counts),
        "mean_pnr_interval": mean_pnr_interval(counts, seed),
        "pairs": sum(sum(count) for count in counts),
        "tied_pairs": sum(count.tied for count in counts),
    }


def differences(result: SystemResult, base: SystemResult, seed: int = 0) -> dict[str, Any]:
    """The means of the differences from the base, query by query."""
    row: dict[str, Any] = {}
    for measure, values in result.values.items():
        found = [value - base.values[measure][query_id] for query_id, value in values.items()]
        row |= _mean(f"{measure.lower()}_difference", found, seed)
    return row


def table(results: Sequence[SystemResult], title: str) -> Table:
    """A row for each system, a column for each value with its interval."""
    drawn = Table(title=title)
    columns = [key for key in results[0].row if f"{key}_interval" in results[0].row]
    plain = ["tied_pairs", "documents_per_second"]
    for heading in ("system", *(name.replace("_", " ") for name in (*columns, *plain))):
        drawn.add_column(heading, justify="left" if heading == "system" else "right")
    for result in results:
        cells = [with_interval(result.row[key], *result.row[f"{key}_interval"]) for key in columns]
        counts = ["" if result.row[key] is None else f"{result.row[key]:,.0f}" for key in plain]
        drawn.add_row(result.name, *cells, *counts)
    return drawn


def with_interval(value: float, low: float, high: float) -> str:
    """A cell of the table."""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON has no infinity and no NaN: null stands for them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
