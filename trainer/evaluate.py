"""Compare rankings of judged queries by nDCG@k, MRR and PNR, with bootstrap intervals over queries.

    python -m trainer.evaluate --data test.jsonl --systems random bm25 runs/teacher runs/student llm.run

A system is ``random``, ``bm25``, a checkpoint, a TREC run file or a Parquet file of ``trainer.score``;
``NAME=SYSTEM`` gives it another name in the table. Under ``torchrun`` processes share out what checkpoints score.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.addresses import shown
from trainer.command import command, console_of, parse
from trainer.data.rankings import candidates, of_known_queries, read_qrels, read_ranking
from trainer.data.records import DataError, QueryGroup, Scores, read_groups
from trainer.measures.baselines import ABOUT_BM25, Bm25, random_scores
from trainer.measures.comparison import System, as_json, compared, table
from trainer.measures.metrics import MEASURE, judgments, per_query
from trainer.scoring.checkpoint import LESS_MEMORY, PackedScoringArguments, processes_together
from trainer.scoring.memory import naming_flags
from trainer.storage import appears_whole, check_writable

BASELINES = ("random", "bm25")
JUDGED = "judged in the data"


@dataclass(kw_only=True)
class EvaluateArguments(PackedScoringArguments):
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
    baseline: str | None = field(
        default=None, metadata={"help": "System that the others are compared with, query by query."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the table."})
    per_query: str | None = field(
        default=None, metadata={"help": "JSON lines file for the values of each system and query."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of random."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and (self.depth < 1 or not self.candidates):
            raise DataError("--depth is a number of documents, at least 1, and needs --candidates")
        names = [_named(system)[0] for system in self.systems]
        if len({*names}) < len(names):
            raise DataError(f"two systems have one name: {names}: name them NAME=SYSTEM")
        if self.baseline is not None and self.baseline not in names:
            raise DataError(f"--baseline {self.baseline}: not among the systems {names}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, EvaluateArguments)
    check_writable(arguments.output, arguments.per_query)
    groups = read_groups(*arguments.data)
    qrels = _qrels(arguments, groups)
    measures = arguments.measures or [MEASURE, *(["RR@10"] if _whole(qrels) else [])]
    for measure in measures:
        per_query(qrels, {}, measure)  # a misspelt one is refused before hours of scoring
    ranked = _candidates(arguments, [group for group in groups if group.query_id in qrels])
    systems = [_ranking(system, ranked, groups, qrels, arguments) for system in arguments.systems]
    if not processes_together().is_main_process:
        return
    results = compared(systems, qrels, measures, arguments.baseline, arguments.seed)
    console = console_of(240)
    console.print(table(results, f"{len(qrels)} queries, 95% bootstrap intervals"))
    for note in _notes(systems, qrels, len(ranked), arguments.candidates, results[0].row["pairs"]):
        console.print(note, highlight=False, markup=False)
    if arguments.output:
        rows = [{**result.row, **_origin(arguments, result.name)} for result in results]
        _write(arguments.output, as_json(rows, indent=2))
    if arguments.per_query:
        _write(arguments.per_query, "\n".join(as_json(line) for result in results for line in result.lines()))


def _origin(arguments: EvaluateArguments, name: str) -> dict[str, Any]:
    """Where the system and its judgments come from, as it was typed."""
    judged_by = {each: getattr(arguments, each) for each in ("data", "candidates", "depth", "qrels")}
    return {"source": dict(map(_named, arguments.systems))[name], **judged_by}


def _qrels(arguments: EvaluateArguments, groups: Sequence[QueryGroup]) -> Scores:
    """The labels of those queries of the data that have any."""
    qrels = read_qrels(arguments.qrels) if arguments.qrels else judgments(groups)
    qrels = {group.query_id: qrels[group.query_id] for group in groups if group.query_id in qrels}
    if not qrels:
        raise DataError(f"{arguments.qrels or arguments.data[0]}: no query of the data is judged")
    return qrels


def _candidates(arguments: EvaluateArguments, judged: list[QueryGroup]) -> list[QueryGroup]:
    """The judged queries with the documents that systems rank: all, or those of ``--candidates``."""
    if not (path := arguments.candidates):
        return judged
    return candidates(read_ranking(path), judged, arguments.depth, path, JUDGED)


def _ranking(
    system: str,
    ranked: Sequence[QueryGroup],
    groups: Sequence[QueryGroup],
    qrels: Scores,
    arguments: EvaluateArguments,
) -> System:
    name, source = _named(system)
    if source in BASELINES or Path(source).is_dir():
        score = _scorer(source, groups, arguments)  # to load a checkpoint, or to index, is not to score
        started = time.perf_counter()
        with naming_flags(LESS_MEMORY):
            scores = score(ranked)
        return System(name, scores, sum(map(len, scores.values())) / (time.perf_counter() - started))
    read = read_ranking(source)
    known = of_known_queries(read, (group for group in groups if group.query_id in qrels), source, JUDGED)
    scores = {group.query_id: _of_candidates(known.get(group.query_id, {}), group) for group in ranked}
    return System(name, scores, None, len(read) - len(known))


def _of_candidates(documents: dict[str, float], group: QueryGroup) -> dict[str, float]:
    wanted = {document.doc_id for document in group.documents}
    return {doc_id: score for doc_id, score in documents.items() if doc_id in wanted}


def _named(system: str) -> tuple[str, str]:
    """Name and source of ``SOURCE`` or ``NAME=SOURCE``. A path may have an equals sign in it."""
    name, equals, source = system.partition("=")
    return (name, source) if equals and not Path(system).exists() else (shown(system), system)


def _scorer(
    source: str, groups: Sequence[QueryGroup], arguments: EvaluateArguments
) -> Callable[[Sequence[QueryGroup]], Scores]:
    if source == "random":
        return lambda ranked: random_scores(ranked, arguments.seed)
    if source == "bm25":
        return Bm25(groups).scores
    return arguments.scorer(source).score_all


def _notes(systems: Sequence[System], qrels: Scores, ranked: int, source: str | None, pairs: int) -> Iterator[str]:
    """Lines that a reader of the table needs besides; ``ranked`` judged queries have candidates, out of ``source``."""
    if ranked < len(qrels):
        yield f"{source}: {ranked} of {len(qrels)} judged queries have candidates; the others count 0 for every system."
    for system in systems:
        if (scored := system.scored(qrels)) < ranked:
            yield f"{system.name}: {scored} of {ranked} judged queries are in it; the others count 0."
        if system.other_queries:
            yield f"{system.name}: {system.other_queries} of its queries are not judged in the data and do not count."
        if system.name == "bm25":
            yield f"bm25: {ABOUT_BM25}; IDF over the documents of the data."
    yield f"PNR: over the {pairs:,} pairs of documents with different labels that every system scored."


def _whole(qrels: Scores) -> bool:
    return all(label == int(label) for labels in qrels.values() for label in labels.values())


def _write(path: str, text: str) -> None:
    with appears_whole(Path(path)) as partial:
        partial.write_text(shown(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
