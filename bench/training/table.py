"""The table and the JSON of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.report import Spread, ratios, table_of, times
from bench.training.job import GIB
from bench.training.rounds import Measured, largest_difference

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the losses, relative


@dataclass(frozen=True)
class Row:
    """A system in one task. Ratios are ours over it, round by round."""

    task: str
    precision: str
    system: str
    shape: str
    pairs_per_second: Spread
    comparisons_per_second: Spread
    peak_gib: float
    note: str
    trials: dict[str, float]
    rounds: tuple[float, ...]
    versions: dict[str, str]
    ratio: Spread | None = None
    comparisons_ratio: Spread | None = None
    memory_ratio: float | None = None  # ours over it: below 1 ours needs less
    loss_difference: float | None = None  # the largest of the compared steps, relative
    same_loss: bool | None = None


def rows(task: str, precision: str, measured: Sequence[Measured]) -> list[Row]:
    """A row for each system, of which the first is ours."""
    return [_row(task, precision, each, measured[0]) for each in measured]


def _row(task: str, precision: str, each: Measured, ours: Measured) -> Row:
    compared: dict[str, Any] = {}
    if each is not ours:
        difference = largest_difference(ours.losses, each.losses)
        compared = {
            "ratio": ratios(ours.pairs_per_second, each.pairs_per_second),
            "memory_ratio": ours.peak_bytes / each.peak_bytes,
            "loss_difference": difference,
            "same_loss": difference <= TOLERANCE[precision],
        }
        if all(each.comparisons_per_second) and all(ours.comparisons_per_second):
            compared["comparisons_ratio"] = ratios(ours.comparisons_per_second, each.comparisons_per_second)
    return Row(
        task,
        precision,
        each.system.name,
        str(each.shape),
        Spread.of(each.pairs_per_second),
        Spread.of(each.comparisons_per_second),
        each.peak_bytes / GIB,
        note="pairs of a row see each other" if each.rounds[0].notes.get("leaks") else "",
        trials=each.trials,
        rounds=tuple(each.pairs_per_second),
        versions=each.rounds[0].versions,
        **compared,
    )


def table(made: Sequence[Row], title: str) -> Table:
    headings = ("task", "system", "forward of step", "pairs/s", "ratio", "comparisons/s", "ratio", "peak GiB", "memory",
                "loss differs by", "tried: pairs/s", "")  # fmt: skip
    table = table_of(title, headings, left=[*headings[:3], *headings[-2:]])
    for row, after in zip(made, [*made[1:], None], strict=True):
        far = "" if row.same_loss else " (too far)"
        table.add_row(
            f"{row.task}, {row.precision}",
            row.system,
            row.shape,
            str(row.pairs_per_second),
            times(row.ratio),
            str(row.comparisons_per_second) if row.comparisons_per_second.median else "",
            times(row.comparisons_ratio),
            f"{row.peak_gib:.2f}",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}x",
            "" if row.loss_difference is None else f"{row.loss_difference:.1e}{far}",
            "; ".join(f"{shape}: {speed:.1f}" for shape, speed in row.trials.items()),
            row.note,
            end_section=after is not None and (after.task, after.precision) != (row.task, row.precision),
        )
    return table
