"""Serving speed side by side with other software, as tables of ratios, a JSON of all numbers and two plots.

    python -m bench.serving --data dl20.jsonl --calibration dl19.jsonl

Each system is a process in an environment of its own, with the same weights and the same requests. All stay up while
they are measured, cell by cell and in rounds. Every second round runs in reverse order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.folders import MARKER, own
from bench.machine import described, machine
from bench.report import command_of, show, write
from bench.serving import plots, tables
from bench.serving.arguments import ServingArguments
from bench.serving.contenders import Contender, Progress
from bench.serving.course import COMPARED, Findings, measured, prepared, started
from bench.serving.quality import Judge, Quality
from bench.training import material
from client.files import appears_whole
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
    judge = Judge.of(str(place.checkpoint), groups, arguments.quality_documents)
    with ExitStack() as stack, tqdm(unit="measurement") as bar:
        contenders, qualities, failed = started(arguments, place, judge, stack, bar)
        findings = measured(arguments, place, contenders, qualities, _progress(bar))
    _report(arguments, argv, data, findings, failed)


def _progress(bar: Any) -> Progress:
    def done(what: str) -> None:
        bar.set_description(what)
        bar.update()

    return done


def _report(
    arguments: ServingArguments, argv: Sequence[str] | None, data: Sequence[str], findings: Findings,
    failed: dict[str, str],
) -> None:  # fmt: skip
    setting = machine(arguments.threads)
    title = f"{described(setting)}; medians over rounds with the lowest and the highest"
    made = tables.rows(findings.contenders)
    result = {
        "command": command_of("bench.serving", argv),
        "machine": setting,
        "data": [Path(path).name for path in data],
        "systems": [_described(one, findings.qualities.get(one.name)) for one in findings.contenders],
        "failed": failed,
        "rows": [asdict(row) for row in made],
        **{
            name: {system: asdict(each) for system, each in getattr(findings, name).items()}
            for name in ("limits", "tails", "growth")
        },
    }
    output = Path(arguments.output)
    write(output / "serving.json", result)
    with appears_whole(output / "serving.png") as partial:
        compared = [row for row in made if row.cell.shape in COMPARED and not row.cell.repeated]
        plots.draw_speeds(compared or made, partial, described(setting))
    with appears_whole(output / "serving-growth.png") as partial:
        plots.draw_growth(findings.growth, partial, described(setting))
    show(
        tables.speed_table(made, title),
        tables.system_table(findings.contenders, findings.qualities, failed),
        tables.limit_table(findings.limits, findings.tails, findings.growth),
    )


def _described(one: Contender, quality: Quality | None) -> dict[str, Any]:
    return {
        "name": one.name, "option": one.option, "trials": one.trials, "versions": one.versions,
        "quality": None if quality is None else {**asdict(quality), "passes": quality.passes},
        "not_measured": {str(cell): reason for cell, reason in one.failures.items()},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
