"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.report import picture
from bench.serving.limits import Growth
from bench.serving.systems import OURS
from bench.serving.tables import Row


def draw_speeds(made: Sequence[Row], not_equal: Collection[str], path: Path, title: str) -> None:
    """Documents a second of every system, a panel for each cell, as a PNG. ``not_equal`` rank worse than PyTorch."""
    cells = list(dict.fromkeys(row.cell for row in made))
    names = list(dict.fromkeys(row.system for row in made))[::-1]
    with picture(path, title, (3.2 * len(cells) + 2, 0.35 * len(names) + 1.6)) as figure:
        panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
        for axes, cell in zip(panels, cells, strict=True):
            found = [row for row in made if row.cell == cell]
            spreads = [row.documents_per_second for row in found]
            axes.barh(
                [names.index(row.system) for row in found],
                [each.median for each in spreads],
                xerr=[[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]],
                color=[_color(row.system, not_equal) for row in found],
            )
            axes.set_yticks(range(len(names)), [f"{name} (not equal)" if name in not_equal else name for name in names])
            axes.set_title(str(cell), fontsize=9)
            axes.set_xlabel("documents/s")
            axes.grid(axis="x", alpha=0.3)


def _color(system: str, not_equal: Collection[str]) -> str:
    if system in not_equal:
        return "lightgray"
    return "tab:orange" if system.startswith(OURS) else "tab:blue"


def draw_growth(found: Mapping[str, Growth], path: Path, title: str) -> None:
    """Seconds of a request over its tokens, both logarithmic, with the line that has the least relative error."""
    with picture(path, title, (7, 5)) as figure:
        axes = figure.subplots()
        for name, growth in found.items():
            drawn = axes.plot(growth.tokens, growth.seconds, marker="o", linestyle="", label=name)
            line = np.poly1d(np.polyfit(growth.tokens, growth.seconds, 1, w=1 / np.array(growth.seconds)))
            axes.plot(growth.tokens, line(growth.tokens), color=drawn[0].get_color(), alpha=0.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tokens of the request (1 to 1,000 documents)")
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend()
