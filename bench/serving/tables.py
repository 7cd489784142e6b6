"""The tables of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from rich.table import Table

from bench.report import Spread, ratios, table_of, times
from bench.serving.contenders import Contender
from bench.serving.limits import TAIL_LOAD, Bounds
from bench.serving.load import Cell

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A system in a cell, with medians over rounds. ``ratios`` are our systems' documents a second over its own."""

    cell: Cell
    system: str
    documents_per_second: Spread
    milliseconds: tuple[float, ...]  # p50, p95, p99
    cpu_per_thousand: float  # seconds of all cores for 1,000 documents
    memory_mib: float
    requests: int  # of all rounds, that the percentiles are of
    ratios: Mapping[str, Spread]
    rounds: tuple[float, ...]


def rows(contenders: Sequence[Contender]) -> list[Row]:
    """Rows cell by cell, with ratios where both sides have the same rounds."""
    ours = [contender for contender in contenders if contender.is_ours]
    cells = list(dict.fromkeys(cell for contender in contenders for cell in contender.results))
    return [_row(cell, contender, ours) for cell in cells for contender in contenders if cell in contender.results]


def _row(cell: Cell, contender: Contender, ours: Sequence[Contender]) -> Row:
    found, speeds = contender.results[cell], contender.speeds(cell)
    percentiles = [np.percentile(each.sample.milliseconds, [50, 95, 99]) for each in found]
    return Row(
        cell=cell,
        system=contender.name,
        documents_per_second=Spread.of(speeds),
        milliseconds=tuple(np.median(percentiles, axis=0).tolist()),
        cpu_per_thousand=median(each.cpu_per_thousand for each in found),
        memory_mib=max(each.memory_bytes for each in found) / MIB,
        requests=sum(len(each.sample.milliseconds) for each in found),
        ratios={
            one.name: ratios(one.speeds(cell), speeds)
            for one in ours
            if one is not contender and len(one.speeds(cell)) == len(speeds)
        },
        rounds=tuple(speeds),
    )


def speed_table(made: Sequence[Row], title: str) -> Table:
    ours = list(dict.fromkeys(name for row in made for name in row.ratios))
    headings = ("requests of", "system", "documents/s", *(f"{name} is" for name in ours), "p50 ms", "p95 ms", "p99 ms",
                "CPU s / 1,000", "MiB")  # fmt: skip
    table = table_of(title, headings, left=headings[:2])
    for row, after in zip(made, [*made[1:], None], strict=True):
        table.add_row(
            str(row.cell), row.system, str(row.documents_per_second),
            *(times(row.ratios.get(name)) for name in ours),
            *(f"{value:.1f}" for value in row.milliseconds), f"{row.cpu_per_thousand:.2f}", f"{row.memory_mib:,.0f}",
            end_section=after is not None and after.cell != row.cell,
        )  # fmt: skip
    return table


def system_table(contenders: Sequence[Contender], failed: Mapping[str, str]) -> Table:
    headings = ("system", "runs with", "tried", "quality", "not measured")
    title = "systems: settings that were tried, in documents/s, and quality against PyTorch in float32"
    table = table_of(title, headings, left=headings)
    for one in contenders:
        table.add_row(
            one.name,
            _chosen(one),
            "; ".join(f"{name}: {speed:.1f}" for name, speed in one.trials.items()),
            str(one.quality or "too slow to ask"),
            "; ".join(f"{cell}: {reason}" for cell, reason in one.failures.items()),
        )
    for name, reason in failed.items():
        table.add_row(name, "does not run", "", "", reason)
    return table


def _chosen(contender: Contender) -> str:
    option = contender.option
    callers = {None: "", True: ", callers at once", False: ", callers in turn"}[option.get("together")]
    return f"batch size {option['batch_size']}{callers}" if option else "as it is"


def limit_table(found: Mapping[str, Bounds]) -> Table:
    headings = ("system", "served", "engine alone", "share", "full rows", "matrices alone", "engine of it",
                f"p99 / median at {TAIL_LOAD:.0%} load", "a line in tokens explains")  # fmt: skip
    table = table_of(
        "documents/s of the largest request: served, and its limits; tail and growth", headings, ["system"]
    )
    for name, (each, tail, growth, _) in found.items():
        matrices = f"{each.matrices:.0f} ({each.matrices_run_in}, {each.matrix_flop_per_second / 1e9:.0f} GFLOP/s)"
        table.add_row(
            name, str(each.served), str(each.engine), f"{each.share.median:.0%}", str(each.full_rows), matrices,
            f"{each.matrix_share:.0%}", f"{tail.ratio:.1f}x ({tail.p99:.0f} of {tail.p50:.0f} ms)",
            f"{growth.r_squared:.2%}",
        )  # fmt: skip
    return table


def way_table(found: Mapping[str, Bounds]) -> Table:
    """Columns of parts are means in ms; what the parts leave of a request is Triton's, gRPC's and the client's."""
    parts = list(dict.fromkeys(part for each in found.values() for way in each.ways.values() for part in way.parts))
    headings = ("requests of", "system", "documents/s", "p50 ms", "p95 ms", "engine works", "calls/s", "tokens a call",
                *parts, "the rest")  # fmt: skip
    table = table_of("the way of small requests through a server", headings, left=headings[:2])
    for name, each in found.items():
        for cell, way in each.ways.items():
            p50, p95 = np.percentile(way.sample.milliseconds, [50, 95])
            rest = np.mean(way.sample.milliseconds) - sum(way.parts.values())
            table.add_row(
                str(cell), name, f"{way.sample.documents_per_second:.1f}", f"{p50:.1f}", f"{p95:.1f}",
                f"{way.engine_share:.0%}", f"{way.calls_per_second:.1f}", f"{way.tokens_per_call:.0f}",
                *(f"{way.parts[part]:.1f}" for part in parts), f"{rest:.1f}",
            )  # fmt: skip
    return table
