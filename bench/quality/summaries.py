"""Summaries of the rankings of all cells: each cell's measures, and those of each system over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

from bench.quality.cells import Cell, matches
from bench.quality.runs import Runner
from bench.quality.sources import Sources
from bench.quality.study import Study, StudyError
from client.errors import DisRankerError
from trainer.data.rankings import of_known_queries, read_qrels, read_ranking
from trainer.data.records import QueryGroup, Scores
from trainer.measures.baselines import Bm25, random_scores
from trainer.measures.comparison import System, SystemResult, compared, differences, mean_of_runs
from trainer.measures.metrics import judgments

# Systems that need no step, as trainer.evaluate has them.
BASELINES: dict[str, Callable[[Sequence[QueryGroup]], Scores]] = {
    "random": lambda groups: random_scores(groups, seed=0),
    "bm25": lambda groups: Bm25(groups).scores(groups),
}


class Cost(NamedTuple):
    """The work behind a ranking, of folds their mean."""

    seconds: float  # of its commands, the ranking's included
    teacher_scores: float  # that were read


class Ranked(NamedTuple):
    """A cell whose ranking is there."""

    cell: Cell
    scores: Scores
    result: SystemResult
    cost: Cost


class Summary(NamedTuple):
    """A system on a collection, over its seeds."""

    cell: Cell  # of the first seed
    runs: Sequence[SystemResult]
    result: SystemResult
    cost: Cost


def summaries(ranked: Sequence[Ranked]) -> list[Summary]:
    """One of each system and collection, in the order of the study."""
    by_name = defaultdict[tuple[str, str], list[Ranked]](list)
    for each in ranked:
        by_name[each.cell.system, each.cell.collection].append(each)
    found = []
    for (name, _), seeds in by_name.items():
        runs = [each.result for each in seeds]
        cost = Cost(fmean(each.cost.seconds for each in seeds), fmean(each.cost.teacher_scores for each in seeds))
        found.append(Summary(seeds[0].cell, runs, mean_of_runs(name, runs), cost))
    return found


class Contrast(NamedTuple):
    """Systems of a collection and their differences from the baseline of a comparison."""

    name: str
    collection: str
    base: Summary
    others: Sequence[tuple[Summary, dict[str, Any]]]


def contrasts(study: Study, found: Sequence[Summary]) -> list[Contrast]:
    """One of each comparison and collection, where its baseline and any other system of it ended."""
    made = []
    for (name, comparison), collection in product(study.comparisons.items(), study.collections):
        here = [each for each in found if each.cell.collection == collection]
        for base in (each for each in here if each.cell.system == comparison.baseline):
            chosen = [each for each in here if each is not base and matches(each.cell, comparison.systems)]
            others = [(each, differences(each.result, base.result)) for each in chosen]
            made += [Contrast(name, collection, base, others)] if others else []
    return made


def evaluated(
    study: Study, cells: Sequence[Cell], runner: Runner, sources: Sources
) -> tuple[list[Ranked], dict[str, str]]:
    """The cells whose rankings are there, collection by collection, and why the others failed, by their names.

    Values are those of ``trainer.evaluate`` over all systems of the collection: PNR is over the same pairs for all.
    """
    ranked, failures = list[Ranked](), dict[str, str]()
    for name, table in study.collections.items():
        scores = dict[str, Scores]()
        here = {str(cell): cell for cell in cells if cell.collection == name}
        for key, cell in here.items():
            try:
                scores[key] = _scores(cell, runner, sources)
            except DisRankerError as error:
                failures[key] = str(error)
        if scores:
            systems = [System(*each) for each in scores.items()]
            for result in compared(systems, qrels_of(table.texts(), sources), study.measures):
                cell = here[result.name]
                ranked.append(Ranked(cell, scores[result.name], result, _cost(cell, runner)))
    return ranked, failures


def qrels_of(texts: Mapping[str, str], sources: Sources) -> Scores:
    """The judgments of a collection's test queries. Raises StudyError if there are none."""
    name = texts["test"].strip("{}")
    groups = sources.groups(name)
    labels = read_qrels(sources[texts["qrels"].strip("{}")].path) if "qrels" in texts else judgments(groups)
    qrels = {group.query_id: labels[group.query_id] for group in groups if group.query_id in labels}
    if not qrels:
        raise StudyError(f"{name}: none of its queries is judged")
    return qrels


def _scores(cell: Cell, runner: Runner, sources: Sources) -> Scores:
    """The ranking of all queries, those of several folds joined. Raises DisRankerError for a cell that failed."""
    scores: Scores = {}
    for fold in cell.folds:
        if failed := [runner.failures[task] for task in fold.run.tasks if task in runner.failures]:
            raise StudyError(failed[0])
        groups, source = sources.groups(fold.test), runner.path(fold.run)
        if source in BASELINES:
            scores |= BASELINES[source](groups)
        else:
            scores |= of_known_queries(read_ranking(source), groups, source)
    return scores


def _cost(cell: Cell, runner: Runner) -> Cost:
    costs = []
    for fold in cell.folds:
        tasks = fold.tasks()
        taught = [task for task in tasks if task.output.endswith(".parquet") and task not in fold.run.tasks]
        pairs = sum(runner.outcomes[task].pairs or 0 for task in taught)
        costs.append(Cost(sum(runner.outcomes[task].seconds for task in tasks), pairs))
    return Cost(fmean(each.seconds for each in costs), fmean(each.teacher_scores for each in costs))
