"""Compare rankings of judged queries by nDCG@k, MRR and PNR, with bootstrap intervals over queries.

    python -m trainer.evaluate --data test.jsonl --systems random bm25 runs/teacher runs/student llm.run

A system is ``random``, ``bm25``, a checkpoint, a TREC run file or a Parquet file of ``trainer.score``;
``NAME=SYSTEM`` gives it another name in the table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from client.files import appears_whole
from trainer.command import command, console_of, parse
from trainer.data.rankings import check_known, read_qrels, read_run, read_scores
from trainer.data.records import DataError, QueryGroup, Scores, read_groups
from trainer.measures.baselines import bm25_scores, random_scores
from trainer.measures.metrics import bootstrap_interval, judgments, pair_counts, per_query, pnr, pnr_interval
from trainer.scoring.checkpoint import GroupScorer


@dataclass
class EvaluateArguments:
    """The systems to compare, and the queries."""

    data: list[str] = field(metadata={"help": "Queries with their candidates (JSONL, Parquet)."})
    systems: list[str] = field(metadata={"help": "random, bm25, checkpoints, run files, score files; NAME=SYSTEM."})
    measures: list[str] = field(
        default_factory=lambda: ["nDCG@10", "RR@10"], metadata={"help": "Names of ir_measures."}
    )
    qrels: str | None = field(default=None, metadata={"help": "TREC qrels that replace the labels in the data."})
    baseline: str | None = field(
        default=None, metadata={"help": "System that the others are compared with, query by query."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the table."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of random."})


@dataclass(frozen=True)
class SystemResult:
    """One system on all judged queries."""

    name: str
    values: dict[str, dict[str, float]]  # measure -> query_id -> value
    row: dict[str, Any]  # as it is reported


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, EvaluateArguments)
    groups = read_groups(*arguments.data)
    qrels = read_qrels(arguments.qrels) if arguments.qrels else judgments(groups)
    groups = [group for group in groups if group.query_id in qrels]
    if not groups:
        raise DataError(f"{arguments.qrels or arguments.data[0]}: no query of the data is judged")
    qrels = {group.query_id: qrels[group.query_id] for group in groups}
    results = [_evaluate(system, groups, qrels, arguments) for system in arguments.systems]
    if arguments.baseline is not None:
        _compare(results, arguments.baseline, arguments.seed)
    console = console_of(240)
    console.print(_table(results, f"{len(groups)} queries, 95% bootstrap intervals"))
    if arguments.output:
        with appears_whole(Path(arguments.output)) as partial:
            partial.write_text(json.dumps([result.row for result in results], indent=2) + "\n", encoding="utf-8")


def _evaluate(system: str, groups: Sequence[QueryGroup], qrels: Scores, arguments: EvaluateArguments) -> SystemResult:
    name, _, source = system.rpartition("=")
    scores, speed = _scores(source, groups, arguments.seed)
    row: dict[str, Any] = {"system": name or source, "queries": len(qrels)}
    values = {}
    for measure in arguments.measures:
        values[measure] = per_query(qrels, scores, measure)
        column = list(values[measure].values())
        row[measure.lower()] = float(np.mean(column))
        row[f"{measure.lower()}_interval"] = bootstrap_interval(column, arguments.seed)
    counts = [
        pair_counts([grades[doc_id] for doc_id in shared], [scores[query_id][doc_id] for doc_id in shared])
        for query_id, grades in qrels.items()
        if (shared := [doc_id for doc_id in grades if doc_id in scores.get(query_id, {})])
    ]
    row["pnr"], row["pnr_interval"] = pnr(counts), pnr_interval(counts, arguments.seed)
    row["tied_pairs"] = sum(count.tied for count in counts)
    row["documents_per_second"] = speed
    return SystemResult(name or source, values, row)


def _scores(source: str, groups: Sequence[QueryGroup], seed: int) -> tuple[Scores, float | None]:
    """The scores of a system, and the documents that it scored in a second; None for a file of scores."""
    if source not in ("random", "bm25") and not Path(source).is_dir():
        scores = read_scores(source) if source.endswith(".parquet") else read_run(source)
        known = {group.query_id for group in groups}
        check_known({query_id: scores[query_id] for query_id in scores if query_id in known}, groups, source)
        return scores, None
    scorer = GroupScorer(source) if Path(source).is_dir() else None  # loading it is not scoring
    started = time.perf_counter()
    if scorer is None:
        scores = random_scores(groups, seed) if source == "random" else bm25_scores(groups)
    else:
        scores = scorer.score_all(groups)
    return scores, sum(len(group.documents) for group in groups) / (time.perf_counter() - started)


def _compare(results: Sequence[SystemResult], baseline: str, seed: int) -> None:
    """Add the paired difference from the baseline to every other system's row."""
    base = next((result for result in results if result.name == baseline), None)
    if base is None:
        raise DataError(f"--baseline {baseline}: not among the systems {[result.name for result in results]}")
    for result in results:
        for measure, values in result.values.items():
            differences = [value - base.values[measure][query_id] for query_id, value in values.items()]
            result.row[f"{measure.lower()}_difference"] = float(np.mean(differences))
            result.row[f"{measure.lower()}_difference_interval"] = bootstrap_interval(differences, seed)


def _table(results: Sequence[SystemResult], title: str) -> Table:
    table = Table(title=title)
    columns = [key for key in results[0].row if f"{key}_interval" in results[0].row]
    plain = ["tied_pairs", "documents_per_second"]
    for heading in ("system", *columns, *(name.replace("_", " ") for name in plain)):
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


if __name__ == "__main__":
    sys.exit(main())
