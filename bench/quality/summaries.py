"""What is concluded from the rankings of all cells: means over queries and seeds, and paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from bench.quality.cells import Cell
from bench.quality.runs import Runner
from bench.quality.sources import Sources
from bench.quality.study import Study, StudyError
from client.errors import DisRankerError
from trainer.data.rankings import of_known_queries, read_qrels, read_ranking
from trainer.data.records import Scores
from trainer.measures.comparison import System, SystemResult, compared
from trainer.measures.metrics import PairCounts, bootstrap_interval, judgments, pnr, pnr_interval


class Estimate(NamedTuple):
    """A mean over queries with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        data = list(values)
        return cls(fmean(data), *bootstrap_interval(data))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Cost(NamedTuple):
    """The work behind a ranking, its own included: seconds of commands, and pairs whose teacher scores were read."""

    seconds: float
    pairs: float


@dataclass(frozen=True)
class Ranked:
    """A cell that ended, its results, and its cost, for folds their mean."""

    cell: Cell
    scores: Scores
    result: SystemResult
    cost: Cost


@dataclass(frozen=True)
class Difference:
    """A system minus the baseline, query by query."""

    mean: Estimate
    better: int
    equal: int
    worse: int


@dataclass(frozen=True)
class Summary:
    """A system on a collection. The value of a query is its mean over the seeds."""

    cell: Cell
    seeds: int
    values: Mapping[str, Mapping[str, float]]  # measure -> query_id -> value
    by_seed: Mapping[str, Sequence[float]]  # measure -> mean over the queries of each seed
    counts: Sequence[PairCounts]
    cost: Cost

    @classmethod
    def of(cls, ranked: Sequence[Ranked]) -> Summary:
        results = [each.result for each in ranked]
        columns = {measure: [result.values[measure] for result in results] for measure in results[0].values}
        return cls(
            ranked[0].cell,
            len(ranked),
            {name: {query: fmean(of[query] for of in seeds) for query in seeds[0]} for name, seeds in columns.items()},
            {name: [fmean(of.values()) for of in seeds] for name, seeds in columns.items()},
            [
                PairCounts(*map(sum, zip(*(result.counts[query] for result in results), strict=True)))
                for query in results[0].counts
            ],
            Cost(fmean(each.cost.seconds for each in ranked), fmean(each.cost.pairs for each in ranked)),
        )

    def mean(self, measure: str) -> Estimate:
        return Estimate.of(self.values[measure].values())

    def pnr(self) -> Estimate:
        return Estimate(pnr(self.counts), *pnr_interval(self.counts))

    def difference(self, base: Summary, measure: str) -> Difference:
        theirs = base.values[measure]
        found = [value - theirs[query] for query, value in self.values[measure].items()]
        signs = [(each > 0) - (each < 0) for each in found]
        return Difference(Estimate.of(found), signs.count(1), signs.count(0), signs.count(-1))


def summaries(ranked: Sequence[Ranked]) -> list[Summary]:
    """One of each system and collection, in the order of the study."""
    by_name = defaultdict[tuple[str, str], list[Ranked]](list)
    for each in ranked:
        by_name[each.cell.system, each.cell.collection].append(each)
    return [Summary.of(seeds) for seeds in by_name.values()]


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
        if not scores:
            continue
        results = compared([System(*each) for each in scores.items()], qrels_of(table.texts(), sources), study.measures)
        ranked += [Ranked(here[each.name], scores[each.name], each, _cost(here[each.name], runner)) for each in results]
    return ranked, failures


def qrels_of(texts: Mapping[str, str], sources: Sources) -> Scores:
    """The judged queries of a collection's test data. Raises StudyError if there are none."""
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
        path = runner.path(fold.run)
        scores |= of_known_queries(read_ranking(path), sources.groups(fold.test), path)
    return scores


def _cost(cell: Cell, runner: Runner) -> Cost:
    costs = []
    for fold in cell.folds:
        outcomes = [(task, runner.outcomes[task]) for task in fold.tasks()]
        read = [done.pairs or 0 for task, done in outcomes if task.output.endswith(".parquet")]
        own = [runner.outcomes[task].pairs or 0 for task in fold.run.tasks if task.output.endswith(".parquet")]
        costs.append(Cost(sum(done.seconds for _, done in outcomes), sum(read) - sum(own)))
    return Cost(fmean(each.seconds for each in costs), fmean(each.pairs for each in costs))
