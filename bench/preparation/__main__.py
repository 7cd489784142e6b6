"""Prepare generated logs, beside pandas and Polars, which do the same to the same files.

    python -m bench.preparation
    python -m bench.preparation --impressions 1000000 3000000 10000000 30000000 --systems ours-whole --rounds 1

Each system runs in a process of its own, the peers in environments of their own, and every second round runs in reverse
order. ``ours`` does what the peers do: it looks for no near duplicates of documents and takes known propensities.
``ours-whole`` has trainer.prepare's defaults and estimates them. The files of all but the last must be equal.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table
from tqdm import tqdm

from bench.environments import BenchError, interpreter
from bench.folders import MARKER, own
from bench.preparation.log import write_log
from bench.preparation.runs import GIB, System, TooMuchMemoryError, run
from bench.preparation.workers.rules import MIN_DWELL_S
from bench.report import Spread, described, in_order, machine, ratios, show, table_of, times
from trainer.command import command, parse
from trainer.data.records import DataError

REQUIREMENTS = Path(__file__).with_name("requirements")
OURS, WHOLE = "ours", "ours-whole"
PEERS = ("polars", "pandas")
Floats = npt.NDArray[np.float64]
HEADINGS = (
    "impressions",
    "system",
    "s",
    "thousand/s",
    "ours is",
    "GiB",
    "our GiB",
    "clicked pairs",
    "pairs of the pool",
)


@dataclass
class PreparationArguments:
    """The sizes, the systems and their limits."""

    impressions: list[int] = field(default_factory=lambda: [1_000_000], metadata={"help": "Rows of each log."})
    systems: list[str] = field(
        default_factory=lambda: [OURS, WHOLE, *PEERS],
        metadata={"help": f"Some of {OURS}, {WHOLE}, {', '.join(PEERS)}."},
    )
    rounds: int = field(default=3, metadata={"help": "Runs of each system."})
    memory_limit: str | None = field(default=None, metadata={"help": "Of trainer.prepare; its own default without."})
    most_gib: float = field(default=12.0, metadata={"help": "Memory at which a system is ended."})
    threads: int = field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        metadata={"help": "Threads of each; all cores by default."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the logs."})
    work_dir: str = field(default="runs/bench-preparation", metadata={"help": "Logs and what is made of them."})
    environments: str = field(default=".venv-bench", metadata={"help": "The peers' environments."})

    def __post_init__(self) -> None:
        if wrong := [name for name in self.systems if name not in (OURS, WHOLE, *PEERS)]:
            raise DataError(f"--systems {wrong[0]}: not one of {OURS}, {WHOLE}, {', '.join(PEERS)}")
        if min(self.rounds, self.threads, *self.impressions) < 1 or self.most_gib <= 0:
            raise DataError("--impressions, --rounds and --threads must be at least 1, --most_gib above 0")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, PreparationArguments)
    work = Path(arguments.work_dir).absolute()
    own(work, "--work_dir", MARKER)
    table = table_of(f"Preparing a log; {described(machine(arguments.threads))}", HEADINGS, left=HEADINGS[1:2])
    found = dict[int, list[System]]()
    for size in arguments.impressions:
        found[size] = measured(arguments, made(work, size, arguments.seed), work)
        add_rows(table, size, found[size])
    show(table)
    for line in growth(found):
        print(line)


def made(work: Path, impressions: int, seed: int) -> Path:
    """The folder of a log, which is drawn if it is not there."""
    log = work / f"log-{impressions}-{seed}"
    if not log.is_dir():
        partial = log.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_log(partial, impressions, seed)
        partial.rename(log)
    return log


def measured(arguments: PreparationArguments, log: Path, work: Path) -> list[System]:
    """All systems with their runs. Raises BenchError for files that differ, and for a system that fails."""
    systems = [system_of(name, arguments) for name in arguments.systems]
    with tqdm(total=arguments.rounds * len(systems), unit="run", desc=log.name) as bar:
        for number in range(arguments.rounds):
            for each in in_order(systems, number):
                bar.set_postfix_str(each.name)
                if not each.stopped:
                    try:
                        each.runs.append(run(each, log, work, arguments.threads, int(arguments.most_gib * GIB)))
                    except TooMuchMemoryError as error:
                        each.stopped = str(error)
                bar.update()
    require_equal([each for each in systems if not each.does_more])
    return systems


def system_of(name: str, arguments: PreparationArguments) -> System:
    if name in PEERS:
        python = interpreter(REQUIREMENTS / f"{name}.txt", Path(arguments.environments).absolute())
        return System(name, [python, "-m", f"bench.preparation.workers.with_{name}", "{log}", "{output}"])
    bias, near = ("estimated", "0.9") if name == WHOLE else ("{log}/propensities.tsv", "0")
    flags = ["--position_bias", bias, "--near_duplicates", near, "--min_dwell_s", str(MIN_DWELL_S)]
    flags += ["--max_failed", "1000000", "--threads", str(arguments.threads)]
    flags += ["--memory_limit", arguments.memory_limit] if arguments.memory_limit else []
    prepare = [sys.executable, "-m", "trainer.prepare", "--mapping", "{log}/log.toml", "--output_dir", "{output}"]
    return System(name, [*prepare, *flags], does_more=name == WHOLE)


def require_equal(systems: Sequence[System]) -> None:
    """Raises BenchError for systems that have not left the same records."""
    runs = [(each.name, made.files) for each in systems for made in each.runs]
    for name, files in runs[1:]:
        if files != runs[0][1]:
            raise BenchError(f"{name} and {runs[0][0]} differ, so their times say nothing: {files} and {runs[0][1]}")


def add_rows(table: Table, size: int, systems: Sequence[System]) -> None:
    ours = next((each.runs for each in systems if each.name == OURS), [])
    for each in systems:
        if not each.runs:
            table.add_row(f"{size:,}", each.name, each.stopped)
            continue
        seconds, peak = [one.seconds for one in each.runs], max(one.peak_bytes for one in each.runs)
        compared = each.name != OURS and len(ours) == len(each.runs)
        files = each.runs[0].files
        table.add_row(
            f"{size:,}", each.name, str(Spread.of(seconds)), f"{size / Spread.of(seconds).median / 1000:,.0f}",
            times(ratios(seconds, [one.seconds for one in ours])) if compared else "", f"{peak / GIB:.2f}",
            f"{max(one.peak_bytes for one in ours) / peak:.2f}x" if compared else "",
            f"{sum(files[name].pairs for name in files if name != 'pool'):,}", f"{files['pool'].pairs:,}",
        )  # fmt: skip
    table.add_section()


def growth(found: dict[int, list[System]]) -> list[str]:
    """The straight line through the median seconds of each system that has three sizes or more."""
    points = dict[str, list[tuple[int, float]]]()
    for size, systems in found.items():
        for each in systems:
            if each.runs:
                seconds = Spread.of([one.seconds for one in each.runs]).median
                points.setdefault(each.name, []).append((size, seconds))
    return [_line(name, *np.array(of).T) for name, of in points.items() if len(of) > 2]


def _line(name: str, sizes: Floats, seconds: Floats) -> str:
    slope, start = np.polyfit(sizes / 1e6, seconds, 1)
    explained = np.corrcoef(sizes, seconds)[0, 1] ** 2
    return f"{name}: {start:.1f} s and {slope:.2f} s a million, a straight line that explains {explained:.2%}"


if __name__ == "__main__":
    sys.exit(main())
