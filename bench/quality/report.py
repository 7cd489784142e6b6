"""The tables, pictures and page of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.quality.cells import matches
from bench.quality.leaks import Leak
from bench.quality.study import COUNTED, Curve, Study
from bench.quality.summaries import Summary
from bench.report import picture, show, table_of
from client.files import appears_whole

ROW, WIDTH = 0.3, 8.0  # inches


class Section(NamedTuple):
    """A part of the page. Without rows it is a picture alone."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    picture: str = ""

    def markdown(self) -> str:
        table = [self.headings, ["---"] * len(self.headings), *self.rows] if self.rows else []
        lines = ["| " + " | ".join(row) + " |" for row in table]
        shown = [f"![{self.title}]({self.picture})"] if self.picture else []
        return "\n\n".join([f"## {self.title}", *(["\n".join(lines)] if lines else []), *shown])


def written(
    study: Study, summaries: Sequence[Summary], leaks: Sequence[Leak], failures: Mapping[str, str], root: Path, by: str
) -> None:
    """Write ``report.md`` and its pictures, and print its tables. ``by`` says on what machine all was made."""
    sections = [
        *_comparisons(study, summaries, root),
        *_curves(study, summaries, root),
        Section(
            "Leaks",
            ("trained on", "tested on", "queries in both", "documents in both"),
            [(each.train, each.test, f"{len(each.queries):,}", f"{each.documents:,}") for each in leaks],
        ),
        Section("Cells that failed", ("cell", "why"), list(failures.items())),
    ]
    sections = [section for section in sections if section.rows or section.picture]
    about = (
        f"{by}. Means over queries with 95% bootstrap intervals, which resample queries; a query's value is its mean "
        "over the seeds. Differences are paired, query by query. PNR counts the same pairs for every system of a "
        "collection; pairs with equal scores are in neither of its counts, and their number is beside it."
    )
    with appears_whole(root / "report.md") as partial:
        page = [f"# {study.title}", about, *(section.markdown() for section in sections)]
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    for section in sections:
        if section.rows:
            table = table_of(section.title, section.headings, section.headings[:1])
            for row in section.rows:
                table.add_row(*row)
            show(table)


def _comparisons(study: Study, summaries: Sequence[Summary], root: Path) -> Iterator[Section]:
    measure, *others = study.measures
    headings = ("system", "seeds", measure, "of each seed", "difference", "better, equal, worse", *others, "PNR",
                "tied pairs", "teacher scores", "minutes")  # fmt: skip
    for name, comparison in study.comparisons.items():
        for collection in study.collections:
            here = [each for each in summaries if each.cell.collection == collection]
            base = next((each for each in here if each.cell.system == comparison.baseline), None)
            chosen = [each for each in here if each is base or matches(each.cell, comparison.systems)]
            if base is None or len(chosen) < 2:
                continue
            rows = [_row(each, base, study.measures) for each in chosen]
            file = f"comparison-{name}-{collection}.png"
            title = f"{name}: {collection}, {len(base.values[measure])} queries, against {base.cell.system}"
            _forest([each for each in chosen if each is not base], base, measure, root / file, title)
            yield Section(title, headings, rows, file)


def _row(each: Summary, base: Summary, measures: Sequence[str]) -> list[str]:
    first, *others = measures
    spread, against = each.by_seed[first], ("", "")
    if each is not base:
        found = each.difference(base, first)
        mean = found.mean
        against = (
            f"{mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]",
            f"{found.better}, {found.equal}, {found.worse}",
        )
    return [
        each.cell.system,
        str(each.seeds) if each.cell.seed is not None else "",
        str(each.mean(first)),
        ", ".join(f"{value:.3f}" for value in spread) if len(spread) > 1 else "",
        *against,
        *(str(each.mean(measure)) for measure in others),
        str(each.pnr()),
        f"{sum(count.tied for count in each.counts):,}",
        f"{each.cost.pairs:,.0f}",
        f"{each.cost.seconds / 60:.1f}",
    ]


def _forest(chosen: Sequence[Summary], base: Summary, measure: str, path: Path, title: str) -> None:
    """The differences from the baseline with their intervals, one below the other."""
    means = [each.difference(base, measure).mean for each in chosen]
    with picture(path, title, (WIDTH, 1.2 + ROW * len(chosen))) as figure:
        ax = figure.subplots()
        values, places = [mean.value for mean in means], range(len(means))
        errors = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
        ax.errorbar(values, places, xerr=errors, fmt="o", capsize=3)
        ax.axvline(0.0, color="grey", linewidth=1)
        ax.set_yticks(places, [each.cell.system for each in chosen])
        ax.set_ylim(len(means) - 0.5, -0.5)
        ax.set_xlabel(f"difference in {measure}")
        ax.grid(alpha=0.3, axis="x")


def _curves(study: Study, summaries: Sequence[Summary], root: Path) -> Iterator[Section]:
    for name, curve in study.curves.items():
        for collection in study.collections:
            lines = dict[str, list[tuple[float, Summary]]]()
            for each in summaries:
                x = _place(each, curve.x)
                if each.cell.collection == collection and matches(each.cell, curve.systems) and x is not None:
                    lines.setdefault(_line(each, curve), []).append((x, each))
            if not lines:
                continue
            title, file = f"{name}: {collection}, {study.measures[0]} over {curve.x}", f"curve-{name}-{collection}.png"
            _draw(lines, curve.x, study.measures[0], root / file, title)
            yield Section(title, (), (), file)


def _place(summary: Summary, x: str) -> float | None:
    """None for a system that has no such number."""
    if x in COUNTED:
        return {"pairs": summary.cost.pairs, "minutes": summary.cost.seconds / 60}[x]
    option = summary.cell.variants.get(x)
    return None if option is None else float(option)


def _line(summary: Summary, curve: Curve) -> str:
    """The systems of one line differ in ``x``, and where it is counted, in any variant."""
    shown = () if curve.x in COUNTED else (name for name in summary.cell.shown if name != curve.x)
    return " ".join([summary.cell.base, *(f"{name}={summary.cell.variants[name]}" for name in shown)])


def _draw(lines: Mapping[str, Sequence[tuple[float, Summary]]], x: str, measure: str, path: Path, title: str) -> None:
    with picture(path, title, (WIDTH, 4.5)) as figure:
        ax = figure.subplots()
        for label, line in lines.items():
            points = sorted(((place, each.mean(measure)) for place, each in line), key=lambda point: point[0])
            places, means = [place for place, _ in points], [mean for _, mean in points]
            errors = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
            ax.errorbar(places, [mean.value for mean in means], yerr=errors, marker="o", capsize=3, label=label)
        every = [place for line in lines.values() for place, _ in line]
        if min(every) > 0 and max(every) > 20 * min(every):
            ax.set_xscale("log")
        ax.set_xlabel(x)
        ax.set_ylabel(measure)
        ax.grid(alpha=0.3)
        ax.legend()
