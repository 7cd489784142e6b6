"""The pictures of a preparation's report, as SVG texts for its page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from trainer.preparation.report import Bars, Report

STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "legend.fontsize": 9}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "svg.hashsalt": "prepare"}
BLUE, ORANGE, GREEN = "#1f5fa8", "#d9730d", "#2e8540"
BINS = 40
THOUSANDS = StrMethodFormatter("{x:,.0f}")


def draw(report: Report) -> list[tuple[str, str]]:
    """Title and SVG of each picture for which there is something to show."""
    drawn: dict[str, tuple[bool, Callable[[Axes], None]]] = {
        "Clicks by position": (bool(report.positions), lambda axes: _clicks(axes, report)),
        "Queries by how often they were asked": (bool(report.frequencies), lambda axes: _frequencies(axes, report)),
        "Documents of a query in the pool": (bool(report.documents), lambda axes: _documents(axes, report)),
        "Lengths of pairs": (bool(report.lengths), lambda axes: _lengths(axes, report)),
        "Where the pool comes from": (bool(report.sources), lambda axes: _sources(axes, report)),
    }
    return [(title, _svg(paint)) for title, (there, paint) in drawn.items() if there]


def _svg(paint: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4))
        paint(figure.subplots(gridspec_kw={"left": 0.15, "right": 0.97, "bottom": 0.19, "top": 0.96}))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]  # a page has no XML declaration in its middle


def _clicks(axes: Axes, report: Report) -> None:
    """The share of impressions that were clicked, and the same divided by how often the position is looked at."""
    places = [each.position for each in report.positions]
    rates = [each.clicks / each.shown for each in report.positions]
    axes.plot(places, rates, color=BLUE, marker="o", ms=4, label="clicks an impression, as logged")
    if report.correction.propensities:
        shares = [each.propensity or 1.0 for each in report.positions]
        corrected = [rate / share for rate, share in zip(rates, shares, strict=True)]
        axes.plot(places, corrected, color=GREEN, marker="o", ms=4, label="corrected")
        axes.plot(places, [rates[0] * share for share in shares], color=ORANGE, ls="--", label="position bias alone")
    axes.set(xlabel="position", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=int(max(rates) < 0.1)))
    axes.legend()


def _frequencies(axes: Axes, report: Report) -> None:
    """Few queries are asked very often: counts have a logarithmic axis, so that their bars are seen."""
    axes.bar(range(len(report.frequencies)), [count for _, count in report.frequencies], color=BLUE)
    axes.set_xticks(range(len(report.frequencies)), [f"{value:,.0f}" for value, _ in report.frequencies], fontsize=8)
    axes.set(xlabel="impressions, at least this and below twice as many", ylabel="queries", yscale="log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.grid(False, axis="x")


def _documents(axes: Axes, report: Report) -> None:
    _histogram(axes, report.documents, "documents", "queries")


def _lengths(axes: Axes, report: Report) -> None:
    _histogram(axes, report.lengths, report.unit, "pairs of a sample")
    lengths = sorted(value for value, count in report.lengths for _ in range(count))
    for share, colour in ((0.5, ORANGE), (0.99, GREEN)):
        value = lengths[min(len(lengths) - 1, int(share * len(lengths)))]
        axes.axvline(value, color=colour, ls="--", label=f"{share:.0%} have at most {value:,.0f}")
    axes.legend()


def _histogram(axes: Axes, bars: Bars, unit: str, counted: str) -> None:
    values, counts = zip(*bars, strict=True)
    low, high = min(values), max(values)
    bins = min(BINS, int(high - low) + 1)
    axes.hist(values, bins=bins, range=(low - 0.5, high + 0.5), weights=counts, color=BLUE)
    axes.set(xlabel=unit, ylabel=counted)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_major_formatter(THOUSANDS)


def _sources(axes: Axes, report: Report) -> None:
    names = list(report.sources)[::-1]
    bars = axes.barh(names, [report.sources[name] for name in names], color=BLUE)
    axes.bar_label(bars, labels=[f"{report.sources[name]:,}" for name in names], padding=4)
    axes.set(xlabel="pairs")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.margins(x=0.15)
    axes.grid(False, axis="y")
