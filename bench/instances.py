"""How many processes the tokenizer or the student should have: requests answered with one, two, three, side by side.

    python -m bench.instances --model_repository model_repository --data dev.jsonl
    python -m bench.instances --model_repository model_repository --data dev.jsonl --model student --counts 1 2

All servers stay up, each with a copy of the repository; in each round all are measured, in the next one the other way
round. A ratio is of two measurements of one round.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from google.protobuf import text_format
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bench.serving.job import Cell
from bench.serving.load import measure
from bench.serving.traffic import Traffic
from bench.serving.workers.ours import OursSystem, opened
from bench.spread import Spread, ratios, times
from engines.repository.configs import read_config
from trainer.data.records import DataError, read_groups

CONFIGS = {"tokenizer": "tokenizer/config.pbtxt", "student": "student/configs/cpu.pbtxt"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for bad input."""
    arguments = _parser().parse_args(argv)
    cells = [Cell(documents, callers, arguments.seconds) for documents, callers in arguments.cells]
    try:
        groups = read_groups(*arguments.data)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    traffic = Traffic([(one.query, tuple(f"{d.title} {d.summary}" for d in one.documents)) for one in groups])
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-instances-")))
        systems = {
            count: stack.enter_context(opened(_setup(arguments.model_repository, root, arguments.model, count)))
            for count in arguments.counts
        }
        table = compare(systems, traffic, cells, arguments.rounds)
    Console(width=140).print(table)
    return 0


def _setup(repository: Path, root: Path, model: str, count: int) -> dict[str, Path]:
    return {"repository": with_instances(repository, root, model, count), "directory": root / f"log{count}"}


def with_instances(repository: Path, root: Path, model: str, count: int) -> Path:
    """A copy of the repository whose ``model`` has ``count`` processes."""
    copy = root / f"instances{count}"
    shutil.copytree(repository, copy)
    path = copy / CONFIGS[model]
    config = read_config(path)
    config.instance_group[0].count = count
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return copy


def compare(systems: dict[int, OursSystem], traffic: Traffic, cells: Sequence[Cell], rounds: int) -> Table:
    counts = list(systems)
    table = Table(title=f"documents/s, medians of {rounds} rounds [lowest, highest]")
    for heading in ("documents x callers", *(f"{count} processes" for count in counts), "", *("" for _ in counts[2:])):
        table.add_column(heading, justify="right")
    bar = tqdm(total=len(cells) * rounds * len(counts), unit="measurement", disable=None)
    for number, cell in enumerate(cells):
        speeds: dict[int, list[float]] = {count: [] for count in counts}
        for turn in range(rounds):
            for count in counts if turn % 2 == 0 else reversed(counts):
                requests = traffic.requests(cell.documents, cell.repeated, seed=number * rounds + turn)
                speeds[count].append(measure(systems[count].connect, requests, cell).documents_per_second)
                bar.update()
        over = [f"{count} over {counts[0]}: {times(ratios(speeds[count], speeds[counts[0]]))}" for count in counts[1:]]
        table.add_row(
            f"{cell.documents} x {cell.concurrency}", *(str(Spread.of(speeds[count])) for count in counts), *over
        )
    bar.close()
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.instances", description="Processes of a model, side by side.")
    parser.add_argument("--model_repository", type=Path, required=True, help="with an OpenVINO student")
    parser.add_argument("--data", nargs="+", required=True, help="queries with documents (JSONL, Parquet)")
    parser.add_argument("--model", choices=CONFIGS, default="tokenizer", help="default %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3], help="default 1 2 3")
    parser.add_argument(
        "--cells", nargs="+", type=_cell, default=[(1, 16), (10, 8), (100, 4)], metavar="DOCUMENTSxCALLERS"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement (default 3)")
    return parser


def _cell(text: str) -> tuple[int, int]:
    documents, callers = (int(number) for number in text.split("x"))  # argparse says what it does not take
    return documents, callers


if __name__ == "__main__":
    sys.exit(main())
