"""Run a study: the cells that a file declares, each of public commands, and what follows from them.

    python -m bench.quality bench/quality/small.toml --output runs/study

The same command goes on where it was stopped. See docs/studies.md for the file.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.quality.cells import Cell, Planner, matches
from bench.quality.leaks import leaks_of, tests_of
from bench.quality.report import written
from bench.quality.runs import Runner
from bench.quality.sources import Sources
from bench.quality.study import Study, StudyError, read_study
from bench.quality.summaries import Contrast, Ranked, contrasts, evaluated, qrels_of, summaries
from bench.report import command_of, described, machine
from client.errors import DisRankerError
from client.files import appears_whole, check_writable
from trainer.command import command, parse
from trainer.data.rankings import write_run
from trainer.measures.comparison import as_json
from trainer.measures.metrics import per_query
from trainer.measures.metrics import ranked as best_first
from trainer.training.resume import held


@dataclass
class QualityArguments:
    """The study, its data and its output."""

    study: str = field(metadata={"help": "TOML file; the first word of the command without the flag, too."})
    output: str = field(metadata={"help": "Folder for outputs of steps, runs, results.json and report.md."})
    data: list[str] = field(default_factory=list, metadata={"help": "NAME=PATH for names of the study's [data]."})
    only: list[str] = field(default_factory=list, metadata={"help": "Systems to run, by name or pattern; else all."})
    collections: list[str] = field(default_factory=list, metadata={"help": "Collections to run them on; else all."})
    seeds: list[int] = field(default_factory=list, metadata={"help": "Some of the study's seeds; else all."})


class CellsFailedError(DisRankerError):
    """Some cells failed, and the report has the others."""

    exit_code = 1
    label = ""


@command
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--study", *words]
    (arguments,) = parse(words, QualityArguments)
    study, root = read_study(Path(arguments.study)), Path(arguments.output)
    every = Planner(study).cells()
    for where, names in study.named().items():
        if unknown := [name for name in names if not any(matches(cell, [name]) for cell in every)]:
            raise StudyError(f"{arguments.study}: {where}: no system is named {unknown[0]!r}")
    for name, comparison in study.comparisons.items():
        if comparison.baseline not in {cell.system for cell in every}:
            raise StudyError(
                f"{arguments.study}: comparison {name!r}: no system is named {comparison.baseline!r}; there are "
                f"{_systems(every)}"
            )
    cells = _chosen(arguments, study, every)
    check_writable(root / "results.json")
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with held(root):
            sources = Sources(_paths(study, arguments), root)
            _study(study, every, cells, sources, root, command_of("bench.quality", argv))
    finally:
        signal.signal(signal.SIGTERM, before)


def _chosen(arguments: QualityArguments, study: Study, every: Sequence[Cell]) -> list[Cell]:
    """The cells of --only, --collections and --seeds. Raises StudyError for what the study does not have."""
    for name in arguments.only:
        if not any(matches(cell, [name]) for cell in every):
            raise StudyError(f"--only {name}: no system of {arguments.study} is named so; there are {_systems(every)}")
    for name in arguments.collections:
        if name not in study.collections:
            raise StudyError(f"--collections {name}: those of {arguments.study} are {', '.join(study.collections)}")
    if unknown := sorted({*arguments.seeds} - {*study.seeds}):
        raise StudyError(f"--seeds {unknown[0]}: the seeds of {arguments.study} are {study.seeds}")
    collections, seeds = arguments.collections or study.collections, {None, *(arguments.seeds or study.seeds)}
    chosen = [cell for cell in every if cell.collection in collections and cell.seed in seeds]
    return [cell for cell in chosen if matches(cell, arguments.only or ["*"])]


def _systems(cells: Sequence[Cell]) -> str:
    return ", ".join(sorted({cell.system for cell in cells}))


def _paths(study: Study, arguments: QualityArguments) -> dict[str, str]:
    given = dict(pair.partition("=")[::2] for pair in arguments.data)
    if unknown := [name for name in given if name not in study.data]:
        raise StudyError(f"--data {unknown[0]}: not among the data of {arguments.study}, {', '.join(study.data)}")
    return study.data | given


def _study(
    study: Study, every: Sequence[Cell], cells: Sequence[Cell], sources: Sources, root: Path, typed: str
) -> None:
    """Run the ``cells``, which are some of ``every`` one of the study, and report."""
    for name in set[str]().union(*(cell.sources() for cell in cells)):
        _ = sources[name]  # what is missing is refused before the work, as is a collection without labels
    for name in {cell.collection for cell in cells}:
        qrels = qrels_of(study.collections[name].texts(), sources)
        for measure in study.measures:
            per_query(qrels, {}, measure)  # a measure that is none, or not for these labels
    in_turn = sorted(cells, key=lambda cell: -1 if cell.seed is None else study.seeds.index(cell.seed))
    tasks = list(dict.fromkeys(task for cell in in_turn for task in cell.tasks()))  # a seed is whole before the next
    tests = {task: names for task, names in tests_of(every).items() if task in tasks}
    found = leaks_of(tests, sources, study.leaks)
    sources.keep()
    runner = Runner(root, sources, tests, study.leaks)
    with tqdm(tasks, unit="step") as bar:
        for task in bar:
            bar.set_description(task.name)
            runner.run(task)
    found += [each for outcome in runner.outcomes.values() for each in outcome.leaks]
    ranked, failures = evaluated(study, cells, runner, sources)
    _write_runs(ranked, root / "runs")
    setting = machine(0)
    about = {"command": typed, "title": study.title, "machine": setting, "versions": runner.versions,
             "data": sources.hashes(), "leaks": [asdict(each) for each in found], "failed": failures}  # fmt: skip
    summed = summaries(ranked)
    contrasted = contrasts(study, summed)
    _write_results(root / "results.json", about, ranked, contrasted, runner)
    written(study, summed, contrasted, found, failures, root, described(setting))
    if failures:
        raise CellsFailedError(f"{len(failures)} of {len(cells)} cells failed, see {root / 'report.md'}")


def _write_runs(ranked: Sequence[Ranked], folder: Path) -> None:
    for each in ranked:
        name = "_".join(str(each.cell).replace("/", "_").replace(",", "").split())
        run = {query: {one: scores[one] for one in best_first(scores)} for query, scores in each.scores.items()}
        write_run(folder / f"{name}.run", run, tag=name)


def _write_results(
    path: Path, about: dict[str, Any], ranked: Sequence[Ranked], contrasted: Sequence[Contrast], runner: Runner
) -> None:
    result = {
        **about, "cells": [_described(each) for each in ranked],
        "steps": {task.name: asdict(outcome) for task, outcome in runner.outcomes.items()},
        "comparisons": [
            {"comparison": each.name, "collection": each.collection, "baseline": each.base.cell.system,
             **one.result.row, **row, **one.cost._asdict()}
            for each in contrasted for one, row in each.others
        ],
    }  # fmt: skip
    with appears_whole(path) as partial:
        partial.write_text(as_json(result, indent=1) + "\n", encoding="utf-8")


def _described(each: Ranked) -> dict[str, Any]:
    """A cell as ``trainer.evaluate`` has it, with the values of its queries, and the steps behind it."""
    cell = each.cell
    return {
        **each.result.row, "system": cell.system, "variants": cell.variants, "collection": cell.collection,
        "seed": cell.seed, **each.cost._asdict(), "steps": [task.name for task in cell.tasks()],
        "queries": list(each.result.lines()),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
