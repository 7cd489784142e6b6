"""Compare rankings of judged queries by nDCG@k, MRR and PNR, with bootstrap intervals over queries.

    python -m trainer.evaluate --data test.jsonl --systems random bm25 runs/teacher runs/student llm.run

A system is ``random``, ``bm25``, a checkpoint, a TREC run file or a Parquet file of ``trainer.score``;
``NAME=SYSTEM`` gives it another name in the table.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from client.files import appears_whole, check_writable
from trainer.command import command, console_of, parse
from trainer.data.rankings import check_known, read_qrels, read_run, read_scores
from trainer.data.records import DataError, QueryGroup, Scores, read_groups
from trainer.measures.baselines import ABOUT_BM25, Bm25, random_scores
from trainer.measures.metrics import (
    MEASURE,
    PairCounts,
    bootstrap_interval,
    judgments,
    mean_pnr,
    mean_pnr_interval,
    pair_counts,
    per_query,
    pnr,
    pnr_interval,
)
from trainer.scoring.checkpoint import PRECISIONS, GroupScorer, Precision

BASELINES = ("random", "bm25")


@dataclass
class EvaluateArguments:
    """The systems to compare, and the queries."""

    data: list[str] = field(metadata={"help": "Queries with their candidates (JSONL, Parquet)."})
    systems: list[str] = field(metadata={"help": "random, bm25, checkpoints, run files, score files; NAME=SYSTEM."})
    measures: list[str] | None = field(
        default=None,
        metadata={"help": f"Names of ir_measures; {MEASURE} and, if labels have no fractions, RR@10 without any."},
    )
    qrels: str | None = field(default=None, metadata={"help": "TREC qrels that replace the labels in the data."})
    candidates: str | None = field(
        default=None, metadata={"help": "Run file: every system ranks its documents only, instead of all in the data."}
    )
    depth: int | None = field(
        default=None, metadata={"help": "Only the first documents of each query in --candidates, this many."}
    )
    precision: Precision = field(
        default="fp32", metadata={"help": "Precision of a checkpoint's layers; its score head computes in fp32."}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "System that the others are compared with, query by query."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the table."})
    per_query: str | None = field(
        default=None, metadata={"help": "JSON lines file for the values of each system and query."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of random."})

    def __post_init__(self) -> None:
        if self.depth is not None and (self.depth < 1 or not self.candidates):
            raise DataError("--depth is a number of documents, at least 1, and needs --candidates")


@dataclass(frozen=True)
class System:
    """A system that has ranked the queries."""

    name: str
    scores: Scores
    documents_per_second: float | None  # None where the scores were in a file
    other_queries: int = 0  # that the file has and the judged data has not


@dataclass(frozen=True)
class SystemResult:
    """One system on all judged queries."""

    name: str
    values: dict[str, dict[str, float]]  # measure -> query_id -> value
    row: dict[str, Any]  # as it is reported
    per_query: list[dict[str, Any]]  # a line for each query


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, EvaluateArguments)
    check_writable(arguments.output, arguments.per_query)
    groups = read_groups(*arguments.data)
    qrels = _qrels(arguments, groups)
    measures = arguments.measures or [MEASURE, *(["RR@10"] if _whole(qrels) else [])]
    for measure in measures:
        per_query(qrels, {}, measure)  # a misspelt one is refused before hours of scoring
    names = [_named(system)[0] for system in arguments.systems]
    if len({*names}) < len(names):
        raise DataError(f"two systems have one name: {names}: name them NAME=SYSTEM")
    if arguments.baseline is not None and arguments.baseline not in names:
        raise DataError(f"--baseline {arguments.baseline}: not among the systems {names}")
    ranked = list(_candidates(arguments, groups, qrels))
    systems = [_ranking(system, ranked, groups, arguments) for system in arguments.systems]
    shared = _scored_by_all(systems, qrels)
    results = [_result(system, qrels, measures, shared, arguments.seed) for system in systems]
    if arguments.baseline is not None:
        _compare(results, arguments.baseline, arguments.seed)
    console = console_of(240)
    console.print(_table(results, f"{len(qrels)} queries, 95% bootstrap intervals"))
    for note in _notes(systems, qrels, results[0].row["pairs"]):
        console.print(note, highlight=False, markup=False)
    if arguments.output:
        _write(arguments.output, json.dumps([_finite(result.row) for result in results], indent=2, allow_nan=False))
    if arguments.per_query:
        lines = (json.dumps(_finite(line), allow_nan=False) for result in results for line in result.per_query)
        _write(arguments.per_query, "\n".join(lines))


def _qrels(arguments: EvaluateArguments, groups: Sequence[QueryGroup]) -> Scores:
    """The labels of those queries of the data that have any."""
    qrels = read_qrels(arguments.qrels) if arguments.qrels else judgments(groups)
    qrels = {group.query_id: qrels[group.query_id] for group in groups if group.query_id in qrels}
    if not qrels:
        raise DataError(f"{arguments.qrels or arguments.data[0]}: no query of the data is judged")
    return qrels


def _candidates(arguments: EvaluateArguments, groups: Sequence[QueryGroup], qrels: Scores) -> Iterator[QueryGroup]:
    """The judged queries with the documents that systems rank: all, or those of ``--candidates``."""
    judged = [group for group in groups if group.query_id in qrels]
    if not arguments.candidates:
        yield from judged
        return
    run, _ = _read(arguments.candidates, judged)
    for group in judged:
        order = run.get(group.query_id, {})
        first = set(sorted(order, key=order.__getitem__, reverse=True)[: arguments.depth])
        if first:
            yield replace(group, documents=tuple(each for each in group.documents if each.doc_id in first))


def _ranking(
    system: str, ranked: Sequence[QueryGroup], groups: Sequence[QueryGroup], arguments: EvaluateArguments
) -> System:
    name, source = _named(system)
    if source in BASELINES or Path(source).is_dir():
        score = _scorer(source, groups, arguments)  # to load a checkpoint, or to index, is not to score
        started = time.perf_counter()
        scores = score(ranked)
        return System(name, scores, sum(map(len, scores.values())) / (time.perf_counter() - started))
    judged = {group.query_id: group for group in ranked}
    scores, others = _read(source, [group for group in groups if group.query_id in judged])
    for query_id, documents in scores.items():
        wanted = {document.doc_id for document in judged[query_id].documents}
        scores[query_id] = {doc_id: score for doc_id, score in documents.items() if doc_id in wanted}
    return System(name, scores, None, others)


def _named(system: str) -> tuple[str, str]:
    """Name and source of ``SOURCE`` or ``NAME=SOURCE``. A path may have an equals sign in it."""
    name, equals, source = system.partition("=")
    return (name, source) if equals and not Path(system).exists() else (system, system)


def _scorer(
    source: str, groups: Sequence[QueryGroup], arguments: EvaluateArguments
) -> Callable[[Sequence[QueryGroup]], Scores]:
    if source == "random":
        return lambda ranked: random_scores(ranked, arguments.seed)
    if source == "bm25":
        return Bm25(groups).scores
    return GroupScorer(source, precision=PRECISIONS[arguments.precision]).score_all


def _read(source: str, judged: Sequence[QueryGroup]) -> tuple[Scores, int]:
    """The scores of judged queries in a file, and how many other queries it has. Raises DataError without any."""
    scores = read_scores(source) if source.endswith(".parquet") else read_run(source)
    query_ids = {group.query_id for group in judged}
    known = {query_id: documents for query_id, documents in scores.items() if query_id in query_ids}
    if not known:
        example = next(iter(scores), None)
        raise DataError(f"{source}: none of its {len(scores)} queries is judged in the data, such as {example!r}")
    check_known(known, judged, source)
    return known, len(scores) - len(known)


def _scored_by_all(systems: Sequence[System], qrels: Scores) -> dict[str, list[str]]:
    """The judged documents of each query that every system scored: what PNR compares."""
    return {
        query_id: [doc_id for doc_id in labels if all(doc_id in system.scores.get(query_id, {}) for system in systems)]
        for query_id, labels in qrels.items()
    }


def _result(
    system: System, qrels: Scores, measures: Sequence[str], shared: dict[str, list[str]], seed: int
) -> SystemResult:
    row: dict[str, Any] = {"system": system.name, "queries": len(qrels), "queries_scored": _scored(system, qrels)}
    values = {measure: per_query(qrels, system.scores, measure) for measure in measures}
    for measure, column in values.items():
        row[measure.lower()] = float(np.mean(list(column.values())))
        row[f"{measure.lower()}_interval"] = bootstrap_interval(list(column.values()), seed)
    counts = {
        query_id: pair_counts(
            [qrels[query_id][doc_id] for doc_id in doc_ids], [system.scores[query_id][doc_id] for doc_id in doc_ids]
        )
        for query_id, doc_ids in shared.items()
        if doc_ids
    }
    pooled = list(counts.values())
    row["pnr"], row["pnr_interval"] = pnr(pooled), pnr_interval(pooled, seed)
    row["mean_pnr"], row["mean_pnr_interval"] = mean_pnr(pooled), mean_pnr_interval(pooled, seed)
    row["pairs"] = sum(sum(count) for count in pooled)
    row["tied_pairs"] = sum(count.tied for count in pooled)
    row["documents_per_second"] = system.documents_per_second
    lines = [
        {
            "system": system.name,
            "query_id": query_id,
            **{measure.lower(): column[query_id] for measure, column in values.items()},
            **{f"{name}_pairs": count for name, count in counts.get(query_id, PairCounts(0, 0, 0))._asdict().items()},
        }
        for query_id in qrels
    ]
    return SystemResult(system.name, values, row, lines)


def _scored(system: System, qrels: Scores) -> int:
    """The judged queries that the system has scores for."""
    return sum(bool(system.scores.get(query_id)) for query_id in qrels)


def _compare(results: Sequence[SystemResult], baseline: str, seed: int) -> None:
    """Add the paired difference from the baseline to every other system's row."""
    base = next(result for result in results if result.name == baseline)
    for result in results:
        for measure, values in result.values.items():
            differences = [value - base.values[measure][query_id] for query_id, value in values.items()]
            result.row[f"{measure.lower()}_difference"] = float(np.mean(differences))
            result.row[f"{measure.lower()}_difference_interval"] = bootstrap_interval(differences, seed)


def _table(results: Sequence[SystemResult], title: str) -> Table:
    table = Table(title=title)
    columns = [key for key in results[0].row if f"{key}_interval" in results[0].row]
    plain = ["tied_pairs", "documents_per_second"]
    for heading in ("system", *(name.replace("_", " ") for name in (*columns, *plain))):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for result in results:
        cells = []
        for key in columns:
            low, high = result.row[f"{key}_interval"]
            cells.append(f"{result.row[key]:.3f} [{low:.3f}, {high:.3f}]")
        table.add_row(
            result.name, *cells, *("" if result.row[key] is None else f"{result.row[key]:,.0f}" for key in plain)
        )
    return table


def _notes(systems: Sequence[System], qrels: Scores, pairs: int) -> Iterator[str]:
    """Lines that a reader of the table needs besides."""
    for system in systems:
        if (scored := _scored(system, qrels)) < len(qrels):
            yield f"{system.name}: {scored} of {len(qrels)} judged queries are in it; the others count 0."
        if system.other_queries:
            yield f"{system.name}: {system.other_queries} of its queries are not judged in the data and do not count."
        if system.name == "bm25":
            yield f"bm25: {ABOUT_BM25}; IDF over the documents of the data."
    yield f"PNR: over the {pairs:,} pairs of documents with different labels that every system scored."


def _whole(qrels: Scores) -> bool:
    return all(label == int(label) for labels in qrels.values() for label in labels.values())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row for JSON, which has no infinity: null stands for it."""
    return {
        name: [_finite_or_none(each) for each in value] if isinstance(value, tuple) else _finite_or_none(value)
        for name, value in row.items()
    }


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: str, text: str) -> None:
    with appears_whole(Path(path)) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
