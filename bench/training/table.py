"""The table and the JSON of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bench.report import Spread, ratios, times
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
    ratio: Spread | None = None
    comparisons_ratio: Spread | None = None
    memory_ratio: float | None = None  # ours over it: below 1 ours needs less
    loss_difference: float | None = None  # the largest of the compared steps, relative
    note: str = ""
    trials: dict[str, float] | None = None
    rounds: tuple[float, ...] = ()
    versions: dict[str, str] | None = None

    @property
    def same_loss(self) -> bool:
        return self.loss_difference is not None and self.loss_difference <= TOLERANCE[self.precision]


def rows(task: str, precision: str, measured: Sequence[Measured], losses: dict[str, list[float]]) -> list[Row]:
    """A row for each system, of which the first is ours. ``losses`` has the curves to compare by the systems' names."""
    ours = measured[0]
    made = []
    for each in measured:
        peer = each is not ours
        compared = all(each.comparisons_per_second) and all(ours.comparisons_per_second)
        made.append(
            Row(
                task,
                precision,
                each.system.name,
                str(each.shape),
                Spread.of(each.pairs_per_second),
                Spread.of(each.comparisons_per_second),
                each.peak_bytes / GIB,
                ratios(ours.pairs_per_second, each.pairs_per_second) if peer else None,
                ratios(ours.comparisons_per_second, each.comparisons_per_second) if peer and compared else None,
                ours.peak_bytes / each.peak_bytes if peer else None,
                largest_difference(losses[ours.system.name], losses[each.system.name]) if peer else None,
                "pairs of a row see each other" if each.rounds[0].notes.get("leaks") else "",
                each.trials,
                tuple(each.pairs_per_second),
                each.rounds[0].versions,
            )
        )
    return made


def table(made: Sequence[Row], title: str) -> Table:
    headings = ("task", "system", "forward of step", "pairs/s", "ratio", "comparisons/s", "ratio", "peak GiB", "memory",
                "loss differs by", "tried: pairs/s", "")  # fmt: skip
    table = Table(title=title)
    for place, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if place in (0, 1, 2, len(headings) - 2, len(headings) - 1) else "right"
        )
    for before, row in zip([None, *made], made, strict=False):
        if before is not None and (before.task, before.precision) != (row.task, row.precision):
            table.add_section()
        loss = (
            "" if row.loss_difference is None else f"{row.loss_difference:.1e}{'' if row.same_loss else ' (too far)'}"
        )
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
            loss,
            "; ".join(f"{shape}: {speed:.1f}" for shape, speed in (row.trials or {}).items() if speed),
            row.note,
        )
    return table


def as_json(made: Sequence[Row]) -> list[dict[str, Any]]:
    return [{**asdict(row), "same_loss": row.same_loss if row.ratio else None} for row in made]
