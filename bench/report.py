"""The parts of a report that all benches share: ratios over rounds, the machine, the command, tables and the JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.table import Table

from client.files import appears_whole
from trainer.command import console_of

System = TypeVar("System")


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.low:.1f}, {self.high:.1f}]"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round."""
    return Spread.of([our / their for our, their in zip(ours, theirs, strict=True)])


def times(ratio: Spread | None) -> str:
    """A spread of ratios as tables show it, "" for None."""
    return "" if ratio is None else f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def in_order(systems: Sequence[System], number: int) -> Sequence[System]:
    """The systems in the order of round ``number``. Every second round is reversed, so no system is always first."""
    return systems if number % 2 == 0 else systems[::-1]


def table_of(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table, in which the columns of ``left`` are words and the others numbers."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


@contextmanager
def picture(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of matplotlib, which appears at the end of the block as a PNG."""
    from matplotlib.figure import Figure  # in the bench extra only

    figure = Figure(figsize=size, layout="constrained")
    yield figure
    figure.suptitle(title)
    with appears_whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def command_of(module: str, argv: Sequence[str] | None) -> str:
    """The command without the folders of this machine."""
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", module, *(Path(word).name if "/" in word else word for word in words)])


def show(*tables: Table) -> None:
    for table in tables:
        console_of(240).print(table)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write JSON, in which a dataclass is an object of its fields."""
    with appears_whole(path) as partial:
        partial.write_text(json.dumps(result, indent=1, default=asdict) + "\n", encoding="utf-8")


def machine(threads: int) -> dict[str, Any]:
    """The properties of the machine that the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "bf16_units": bf16_units(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def described(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    units = "bf16 units" if machine["bf16_units"] else "no bf16 units"
    return f"{machine['cpu']}, {machine['cores']} cores, {units}"


def bf16_units() -> bool:
    """Tell whether PyTorch has fast kernels for bf16 matrices on this processor. Otherwise it uses plain loops."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
