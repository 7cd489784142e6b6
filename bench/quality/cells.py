"""The cells of a study, systems x collections x seeds, and the tasks that each of them needs.

A task is a step whose variants, seed and collection are chosen. Its name has only those that it depends on, and so
cells share tasks. Paths are filled in when it is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import NamedTuple

from bench.quality.sources import TRAINED
from bench.quality.study import JUDGED, PLACEHOLDER, SUFFIX, Collection, Study, StudyError, module_of

STEPS = "steps/"


@dataclass(frozen=True)
class Filled:
    """A text in which only paths are placeholders: {out}, names of sources, and outputs of tasks below ``steps/``."""

    text: str
    tags: Mapping[str, str] = field(default_factory=dict)  # what was chosen, by placeholder
    tasks: tuple[Task, ...] = ()

    @property
    def sources(self) -> list[str]:
        return [name for name in PLACEHOLDER.findall(self.text) if name != "out" and not name.startswith(STEPS)]


@dataclass(frozen=True, eq=False)
class Task:
    """A command that is run once."""

    name: str
    output: str  # below the study's folder
    module: str
    words: tuple[Filled, ...]
    tags: Mapping[str, str]

    @property
    def needs(self) -> list[Task]:
        return list(dict.fromkeys(task for word in self.words for task in word.tasks))

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(name for word in self.words for name in word.sources))

    def closure(self) -> Iterator[Task]:
        """All tasks that it needs, each after those that it needs itself, and this one; some come twice."""
        for task in self.needs:
            yield from task.closure()
        yield self


class Entry(NamedTuple):
    """A placeholder's text in a cell, and what a folder is named by."""

    text: str
    tag: str


class Fold(NamedTuple):
    """The queries that a cell ranks, all or one fold of them, and their ranking."""

    test: str  # name among the sources
    run: Filled

    def tasks(self) -> list[Task]:
        """Each once, in an order in which they can be run."""
        return list(dict.fromkeys(each for task in self.run.tasks for each in task.closure()))


@dataclass(frozen=True)
class Cell:
    """A system on a collection with a seed, which is None where nothing depends on it."""

    base: str  # the system's name in the file
    variants: Mapping[str, str]
    shown: tuple[str, ...]  # those variants that the name has
    collection: str
    seed: int | None
    folds: tuple[Fold, ...]

    @property
    def system(self) -> str:
        return " ".join([self.base, *(f"{name}={self.variants[name]}" for name in self.shown)])

    def __str__(self) -> str:
        return f"{self.system}, {self.collection}" + ("" if self.seed is None else f", seed {self.seed}")

    def tasks(self) -> list[Task]:
        return list(dict.fromkeys(task for fold in self.folds for task in fold.tasks()))

    def sources(self) -> set[str]:
        of_tasks = {name for task in self.tasks() for name in task.sources}
        return of_tasks.union(*(fold.run.sources for fold in self.folds))


def matches(cell: Cell, patterns: Sequence[str]) -> bool:
    """Tell whether the system's name in the file is among the names, or that with its variants among the patterns."""
    return any(name == cell.base or fnmatchcase(cell.system, name) for name in patterns)


class Planner:
    """Makes the cells of a study. Equal tasks of several cells are one object."""

    def __init__(self, study: Study) -> None:
        self._study, self._keys = study, study.keys()
        self._tasks: dict[str, Task] = {}

    def cells(self) -> list[Cell]:
        """Raises StudyError for a cycle, and for a key that a collection lacks."""
        study = self._study
        every = product(study.systems, study.collections, study.seeds)
        found = (cell for system, name, seed in every for cell in self._cells(system, name, seed, {}))
        return list({str(cell): cell for cell in found}.values())

    def _cells(self, name: str, collection: str, seed: int, chosen: dict[str, str]) -> Iterator[Cell]:
        """A cell of each choice of options for the variants that the system turns out to need."""
        system, table = self._study.systems[name], self._study.collections[collection]
        try:
            folds = [self._fold(system.run, chosen, table, number, seed) for number in range(table.folds)]
        except KeyError as missing:
            (variant,) = missing.args
            for option in system.options(variant, self._study.variants[variant]):
                yield from self._cells(name, collection, seed, {**chosen, variant: option})
            return
        shown = tuple(variant for variant in chosen if not system.fixes(variant))
        seeded = any("seed" in fold.run.tags for fold in folds)
        yield Cell(name, chosen, shown, collection, seed if seeded else None, tuple(folds))

    def _fold(self, run: str, options: Mapping[str, str], table: Collection, number: int, seed: int) -> Fold:
        texts = {**table.texts(), **table.parts(number)}
        scope = {key: Entry(text, re.sub(r"[{}]", "", text)) for key, text in texts.items()}
        scope |= {each: Entry(self._study.variants[each][option], option) for each, option in options.items()}
        scope |= {key: Entry(str(value), str(value)) for key, value in (("seed", seed), ("fold", number))}
        return Fold(texts["test"].strip("{}"), self._fill(run, scope, ()))

    def _fill(self, text: str, scope: Mapping[str, Entry], above: tuple[str, ...]) -> Filled:
        found = {name: self._value(name, scope, above) for name in PLACEHOLDER.findall(text)}
        return Filled(
            PLACEHOLDER.sub(lambda match: found[match[1]].text, text),
            {key: tag for value in found.values() for key, tag in value.tags.items()},
            tuple(task for value in found.values() for task in value.tasks),
        )

    def _value(self, name: str, scope: Mapping[str, Entry], above: tuple[str, ...]) -> Filled:
        if name in above:
            raise StudyError(f"a cycle: {' needs '.join([*above[above.index(name) :], name])}")
        if name in self._study.steps:
            task = self._task(name, scope, (*above, name))
            return Filled(f"{{{task.output}}}", task.tags, (task,))
        if entry := scope.get(name):
            value = self._fill(entry.text, scope, (*above, name))
            text = value.text.replace(TRAINED, "") if name in JUDGED else value.text
            return Filled(text, {**value.tags, name: entry.tag}, value.tasks)
        if name in self._study.variants:
            raise KeyError(name)
        if name in self._keys:
            raise StudyError(f"{above[-1]!r} needs {{{name}}}, which not every collection has")
        return Filled("{out}" if name == "out" else f"{{{TRAINED}{name}}}")

    def _task(self, step: str, scope: Mapping[str, Entry], above: tuple[str, ...]) -> Task:
        command = self._study.steps[step]
        words, tags = self._words(command, scope, above)
        chosen = ",".join(f"{key}={tags[key]}" for key in sorted(tags)).replace("/", "_")
        name = f"{step}/{chosen or 'once'}"
        if name not in self._tasks:
            output = f"{STEPS}{name}/{step}{SUFFIX.findall(command)[0]}"
            self._tasks[name] = Task(name, output, module_of(step, command), tuple(words[1:]), tags)
        return self._tasks[name]

    def _words(
        self, text: str, scope: Mapping[str, Entry], above: tuple[str, ...]
    ) -> tuple[list[Filled], dict[str, str]]:
        """The words of a command and what they depend on. A word that is a variant may be several, or none.

        Raises KeyError for a variant of which no option was chosen.
        """
        words, tags = list[Filled](), dict[str, str]()
        for word in shlex.split(text):
            match = PLACEHOLDER.fullmatch(word)
            if match and match[1] in self._study.variants and match[1] not in above:
                name = match[1]
                more, chosen = self._words(scope[name].text, scope, (*above, name))
                tags[name] = scope[name].tag
            else:
                more = [self._fill(word, scope, above)]
                chosen = dict(more[0].tags)
            words, tags = words + more, tags | chosen
        return words, tags
