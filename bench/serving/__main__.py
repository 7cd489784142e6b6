"""Serving speed side by side with other software, as tables of ratios, a JSON of all numbers and two plots.

    python -m bench.serving --data dl20.jsonl --calibration dl19.jsonl

Each system is a process in an environment of its own, with the same weights and the same requests. All stay up while
they are measured, cell by cell and in rounds. Every second round runs in reverse order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.folders import MARKER, own
from bench.report import command_of, described, machine, show, write
from bench.serving import plots, tables
from bench.serving.arguments import ServingArguments
from bench.serving.contenders import Contender
from bench.serving.course import COMPARED, measured, prepared, started
from bench.serving.limits import Bounds
from bench.serving.quality import Judge
from bench.training import material
from trainer.command import command, parse
from trainer.data.records import read_groups


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ServingArguments)
    work = Path(arguments.work_dir).absolute()
    own(work, "--work_dir", MARKER)
    data = arguments.data or material.generated_collection(work / "collection")
    groups = read_groups(*data)
    place = prepared(arguments, groups, work)
    judge = Judge.of(str(place.shared["checkpoint"]), groups, arguments.quality_documents)
    with ExitStack() as stack, tqdm(unit="measurement") as bar:
        contenders, failed = started(arguments, place, judge, stack, bar)

        def progress(what: str) -> None:
            bar.set_description(what)
            bar.update()

        bounds = measured(arguments, place, contenders, progress)
    described_run = {"command": command_of("bench.serving", argv), "machine": machine(arguments.threads),
                     "data": [Path(path).name for path in data]}  # fmt: skip
    report(Path(arguments.output), described_run, contenders, bounds, failed)


def report(
    output: Path, run: dict[str, Any], contenders: Sequence[Contender], bounds: Mapping[str, Bounds],
    failed: dict[str, str],
) -> None:  # fmt: skip
    """Write the numbers and the pictures to the folder ``output``, and print the tables."""
    made, setting = tables.rows(contenders), described(run["machine"])
    growth = {name: each.growth for name, each in bounds.items()}
    result = {
        **run,
        "systems": [_described(one) for one in contenders],
        "failed": failed,
        "rows": made,
        "limits": {name: each.limits for name, each in bounds.items()},
        "tails": {name: each.tail for name, each in bounds.items()},
        "growth": growth,
        "ways": {name: {str(cell): way for cell, way in each.ways.items()} for name, each in bounds.items()},
    }
    write(output / "serving.json", result)
    compared = [row for row in made if row.cell.shape in COMPARED and not row.cell.repeated]
    not_equal = [one.name for one in contenders if one.quality and not one.quality.passes]
    plots.draw_speeds(compared or made, not_equal, output / "serving.png", setting)
    plots.draw_growth(growth, output / "serving-growth.png", setting)
    show(
        tables.speed_table(made, f"{setting}; medians over rounds with the lowest and the highest"),
        tables.system_table(contenders, failed),
        tables.limit_table(bounds),
        tables.way_table(bounds),
    )


def _described(one: Contender) -> dict[str, Any]:
    return {
        "name": one.name, "option": one.option, "trials": one.trials, "versions": one.process.versions,
        "quality": one.quality and {**asdict(one.quality), "passes": one.quality.passes},
        "not_measured": {str(cell): reason for cell, reason in one.failures.items()},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
