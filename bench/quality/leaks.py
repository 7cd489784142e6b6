"""Test queries that are trained on: equal or nearly equal texts, and the documents that both sides have."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.quality.cells import Cell, Task
from bench.quality.sources import TRAINED, Asked, Sources, asked
from bench.quality.study import StudyError
from trainer.data.resemblance import RESEMBLANCE, trigrams


@dataclass(frozen=True)
class Leak:
    """The overlap of training data with test queries, by ids."""

    train: str
    test: str
    queries: tuple[tuple[str, str], ...]  # of the training data, and the test query that it is
    documents: int

    def __str__(self) -> str:
        first = f", such as {self.queries[0][0]!r} and {self.queries[0][1]!r}" if self.queries else ""
        return (
            f"{self.train}: {len(self.queries):,} of its queries are, or nearly are, queries of the test {self.test}"
            f"{first}; {self.documents:,} documents are in both"
        )


def leak(train: str, trained: Sequence[Asked], test: str, tested: Sequence[Asked]) -> Leak:
    """``train`` and ``test`` are the names of both sides."""
    sides = (frozenset[str]().union(*(each.documents for each in side)) for side in (trained, tested))
    return Leak(train, test, tuple(_pairs(trained, tested)), len(frozenset.intersection(*sides)))


def tests_of(cells: Sequence[Cell]) -> dict[Task, list[str]]:
    """The names of the data that the cells of each task are tested on."""
    tests = defaultdict[Task, set[str]](set)
    for fold in (fold for cell in cells for fold in cell.folds):
        for task in fold.tasks():
            tests[task].add(fold.test)
    return {task: sorted(names) for task, names in tests.items()}


def leaks_of(tests: Mapping[Task, Sequence[str]], sources: Sources, policy: str) -> list[Leak]:
    """Every set of training queries that a task is given against the ``tests`` of all tasks that it is given to.

    Raises StudyError where there are leaks and the policy is ``refuse``; drops the training queries for ``drop``.
    """
    of_data, found = defaultdict[str, set[str]](set), list[Leak]()
    for task, names in tests.items():
        for name in task.sources:
            if name.startswith(TRAINED):
                of_data[name.removeprefix(TRAINED)].update(names)
    for name, against in of_data.items():
        here, leaking = leaks_against(name, sources[name].path, sorted(against), sources)
        if leaking and policy == "refuse":
            raise StudyError(f'{next(each for each in here if each.queries)}: leaks = "drop" trains without them')
        if leaking and policy == "drop":
            sources.without(name, leaking)
        found += here
    return found


def leaks_against(name: str, path: str, tests: Sequence[str], sources: Sources) -> tuple[list[Leak], set[str]]:
    """The training queries in the file at ``path`` against each of the ``tests``, and the ids of those that leak."""
    trained = asked(path)
    found = [leak(name, trained, test, asked(sources[test].path)) for test in tests if trained]
    return found, {query_id for each in found for query_id, _ in each.queries}


def _pairs(trained: Sequence[Asked], tested: Sequence[Asked]) -> Iterator[tuple[str, str]]:
    """Each training query that a test query resembles, with the first of those.

    Sets that resemble each other share most of the trigrams of either. So a test query is looked up by its rarest
    ones only, one more than the other set may lack.
    """
    known = [trigrams(each.query) for each in tested]
    counts = Counter(gram for grams in known for gram in grams)
    places = defaultdict(list)
    for place, grams in enumerate(known):
        rarest = sorted(grams, key=lambda gram: (counts[gram], gram))
        for gram in rarest[: len(grams) - math.ceil(RESEMBLANCE * len(grams)) + 1]:
            places[gram].append(place)
    for query in trained:
        own = trigrams(query.query)
        for place in sorted({place for gram in own for place in places.get(gram, ())}):
            if len(own & known[place]) >= RESEMBLANCE * len(own | known[place]):
                yield query.query_id, tested[place].query_id
                break
