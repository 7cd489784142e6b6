"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.serving.limits import Growth
from bench.serving.systems import OURS
from bench.serving.tables import Row


def draw_speeds(made: Sequence[Row], path: Path, title: str) -> None:
    """Documents a second of every system, a panel for each cell, as a PNG."""
    from matplotlib.figure import Figure  # in the bench extra only

    cells = list(dict.fromkeys(row.cell for row in made))
    names = list(dict.fromkeys(row.system for row in made))[::-1]
    figure = Figure(figsize=(3.2 * len(cells) + 2, 0.35 * len(names) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, cell in zip(panels, cells, strict=True):
        found = {row.system: row.documents_per_second for row in made if row.cell == cell}
        shown = [name for name in names if name in found]
        places = [names.index(name) for name in shown]
        middles = [found[name].median for name in shown]
        ends = [[found[name].median - found[name].low for name in shown],
                [found[name].high - found[name].median for name in shown]]  # fmt: skip
        colours = ["tab:orange" if name.startswith(OURS) else "tab:blue" for name in shown]
        axes.barh(places, middles, xerr=ends, color=colours)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(str(cell), fontsize=9)
        axes.set_xlabel("documents/s")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def draw_growth(found: Mapping[str, Growth], path: Path, title: str) -> None:
    """Seconds of a request over its tokens, both logarithmic, with the line that fits."""
    import numpy as np
    from matplotlib.figure import Figure  # in the bench extra only

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, growth in found.items():
        drawn = axes.plot(growth.tokens, growth.seconds, marker="o", linestyle="", label=name)
        line = np.poly1d(np.polyfit(growth.tokens, growth.seconds, 1))
        axes.plot(growth.tokens, line(growth.tokens), color=drawn[0].get_color(), alpha=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens of the request (1 to 1,000 documents)")
    axes.set_ylabel("seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
