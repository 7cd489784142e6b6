"""The tables, pictures and page of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.quality.cells import matches
from bench.quality.leaks import Leak
from bench.quality.study import COUNTED, Curve, Study
from bench.quality.summaries import Contrast, Summary
from bench.report import picture, show, table_of
from client.files import appears_whole
from trainer.measures.comparison import with_interval

ABOUT = (
    "Means over queries with 95% bootstrap intervals, which resample queries; a query's value is its mean over the "
    "seeds. Differences are paired, query by query. PNR counts the same pairs for every system of a collection, of all "
    "seeds; pairs with equal scores are in neither of its counts, and their number is beside it."
)
WIDTH, ROW = 8.0, 0.3  # inches


class Section(NamedTuple):
    """A part of the page. Without rows it is a picture alone."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    picture: str = ""

    def markdown(self) -> str:
        table = [self.headings, ["---"] * len(self.headings), *self.rows] if self.rows else []
        parts = [
            f"## {self.title}",
            "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table),
        ]
        return "\n\n".join([*filter(None, parts), *([f"![{self.title}]({self.picture})"] if self.picture else [])])


def written(
    study: Study,
    found: Sequence[Summary],
    contrasted: Sequence[Contrast],
    leaks: Sequence[Leak],
    failures: Mapping[str, str],
    root: Path,
    by: str,
) -> None:
    """Write ``report.md`` and its pictures, and print its tables. ``by`` says on what machine all was made."""
    leaking = [(each.train, each.test, f"{len(each.queries):,}", f"{each.documents:,}") for each in leaks]
    sections = [
        *(_comparison(each, study.measures, root) for each in contrasted),
        *_curves(study, found, root),
        Section("Leaks", ("trained on", "tested on", "queries in both", "documents in both"), leaking),
        Section("Cells that failed", ("cell", "why"), list(failures.items())),
    ]
    sections = [section for section in sections if section.rows or section.picture]
    with appears_whole(root / "report.md") as partial:
        page = [f"# {study.title}", f"{by}. {ABOUT}", *(section.markdown() for section in sections)]
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    for section in (section for section in sections if section.rows):
        table = table_of(section.title, section.headings, section.headings[:1])
        for row in section.rows:
            table.add_row(*row)
        show(table)


def _comparison(each: Contrast, measures: Sequence[str], root: Path) -> Section:
    """A table and a forest plot."""
    first, *others = measures
    headings = ("system", "seeds", first, "of each seed", "difference", "better, equal, worse", *others, "PNR",
                "tied pairs", "teacher scores", "minutes")  # fmt: skip
    count, name = len(each.base.result.values[first]), each.base.cell.system
    title = f"{each.name}: {each.collection}, {count} queries, against {name}"
    file = f"comparison-{each.name}-{each.collection}.png"
    _forest({one.cell.system: row for one, row in each.others}, first, root / file, title)
    rows = [_row(each.base, ("", ""), measures)]
    for one, row in each.others:
        pairs = [(value, each.base.result.values[first][query]) for query, value in one.result.values[first].items()]
        signs = [(value > other) - (value < other) for value, other in pairs]
        against = (_shown(row, f"{first}_difference"), ", ".join(str(signs.count(sign)) for sign in (1, 0, -1)))
        rows.append(_row(one, against, measures))
    return Section(title, headings, rows, file)


def _row(each: Summary, against: tuple[str, str], measures: Sequence[str]) -> list[str]:
    first, *others = measures
    by_seed, row = [run.row[first.lower()] for run in each.runs], each.result.row
    return [
        each.cell.system,
        str(len(by_seed)) if each.cell.seed is not None else "",
        _shown(row, first),
        ", ".join(f"{value:.3f}" for value in by_seed) if len(by_seed) > 1 else "",
        *against,
        *(_shown(row, measure) for measure in (*others, "pnr")),
        f"{row['tied_pairs']:,}",
        f"{each.cost.teacher_scores:,.0f}",
        f"{each.cost.seconds / 60:.1f}",
    ]


def _shown(row: Mapping[str, Any], measure: str) -> str:
    return with_interval(*_estimate(row, measure))


def _estimate(row: Mapping[str, Any], measure: str) -> tuple[float, float, float]:
    """A mean and its interval."""
    return (row[measure.lower()], *row[f"{measure.lower()}_interval"])


def _errors(estimates: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """The lengths of error bars, as matplotlib takes them."""
    return [[value - low for value, low, _ in estimates], [high - value for value, _, high in estimates]]


def _forest(rows: Mapping[str, Mapping[str, Any]], measure: str, path: Path, title: str) -> None:
    """The differences from the baseline with their intervals, one below the other."""
    estimates = [_estimate(row, f"{measure}_difference") for row in rows.values()]
    with picture(path, title, (WIDTH, 1.2 + ROW * len(rows))) as figure:
        ax = figure.subplots()
        ax.errorbar([each[0] for each in estimates], range(len(rows)), xerr=_errors(estimates), fmt="o", capsize=3)
        ax.axvline(0.0, color="grey", linewidth=1)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(f"difference in {measure}")
        ax.grid(alpha=0.3, axis="x")


def _curves(study: Study, found: Sequence[Summary], root: Path) -> Iterator[Section]:
    """A picture of each curve on each collection that has its systems."""
    for name, curve in study.curves.items():
        for collection in study.collections:
            lines = dict[str, list[tuple[float, Summary]]]()
            for each in found:
                x = _place(each, curve.x)
                if each.cell.collection == collection and matches(each.cell, curve.systems) and x is not None:
                    lines.setdefault(_line(each, curve), []).append((x, each))
            if lines:
                title = f"{name}: {collection}, {study.measures[0]} over {curve.x}"
                file = f"curve-{name}-{collection}.png"
                _draw(lines, curve.x, study.measures[0], root / file, title)
                yield Section(title, (), (), file)


def _place(summary: Summary, x: str) -> float | None:
    """None for a system that has no such number."""
    if x in COUNTED:
        return {"pairs": summary.cost.teacher_scores, "minutes": summary.cost.seconds / 60}[x]
    option = summary.cell.variants.get(x)
    return None if option is None else float(option)


def _line(summary: Summary, curve: Curve) -> str:
    """The systems of one line differ in ``x``, or where that is counted, in any variant."""
    shown = [] if curve.x in COUNTED else [name for name in summary.cell.shown if name != curve.x]
    return " ".join([summary.cell.base, *(f"{name}={summary.cell.variants[name]}" for name in shown)])


def _draw(lines: Mapping[str, list[tuple[float, Summary]]], x: str, measure: str, path: Path, title: str) -> None:
    with picture(path, title, (WIDTH, 4.5)) as figure:
        ax = figure.subplots()
        for label, line in lines.items():
            places, points = zip(*sorted(line, key=lambda point: point[0]), strict=True)
            estimates = [_estimate(each.result.row, measure) for each in points]
            ax.errorbar(
                places, [each[0] for each in estimates], yerr=_errors(estimates), fmt="o-", capsize=3, label=label
            )
        every = [place for line in lines.values() for place, _ in line]
        if 0 < 20 * min(every) < max(every):
            ax.set_xscale("log")
        ax.set_xlabel(x)
        ax.set_ylabel(measure)
        ax.grid(alpha=0.3)
        ax.legend()
