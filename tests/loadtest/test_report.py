"""The report of a load test in a real Chromium, on screens of every width, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from loadtest._records import SINGLE, Generator, ModelTimes, Point, Report, summarise
from loadtest._report import write
from loadtest._samples import Sample, kind_of
from loadtest._search import CONFIRMATION, STEP, Objective, judge
from tests.support.browsers import chromium

OBJECTIVE = Objective(10, 0.001)
OVERLOADED = "h:1 is overloaded: student: work of {:.2f} s waits for the engine: retry in {:.2f} s"
TIMES = (ModelTimes("student_with_a_long_name", 10_000, 123.45, 67_890.12, 1.0),)
OUTSIDE = """[...document.querySelectorAll("td, dd, svg")]
    .filter((one) => one.getBoundingClientRect().right > innerWidth).length"""
NAMES = """[...document.querySelectorAll("table")]
    .map((one) => [...one.querySelectorAll("th")].map((name) => name.textContent))"""
COLOURS = """[getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.querySelector("svg text")).fill]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def point(stage: str, rate: float | None, users: int | None, failed: int) -> Point:
    samples = [
        Sample(number / 50, number / 50, number / 50 + number % 90, 10, 5000, 50,
               failure=kind_of(OVERLOADED.format(number / 7, number / 7)) if number < failed else "")
        for number in range(500)
    ]  # fmt: skip
    made = summarise(samples, 10, Generator(0.5, 0.7), stage=stage, rate=rate, users=users)
    verdict = judge(OBJECTIVE, [sample.latency_ms for sample in samples[failed:]], failed) if stage != SINGLE else None
    return Point(**{**vars(made), "server": TIMES, "verdict": verdict})


def report(mode: str, *points: Point) -> Report:
    where = {"h:1": "triton 2.51.0 with ranker 1", "load generator": "a processor, 2 cores"}
    objective = None if points[0].stage == SINGLE else OBJECTIVE
    settings = {"in flight, at most": 512}
    return Report(
        mode, "2026-01-01T00:00:00", "ranking-server.example:8001", settings, where, points, "none", objective
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    steps = point(STEP, 40, None, 0), point(STEP, 1234.5, None, 300), point(CONFIRMATION, 40, None, 3)
    made = {"search": report("search", *steps), "closed": report("closed loop", point(SINGLE, None, 8, 0))}
    for name, one in made.items():
        write(one, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


def shown(browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"]) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(path.as_uri())
    return page


def columns(page: Page) -> list[list[str]]:
    """The names of each table's columns."""
    found: list[list[str]] = page.evaluate(NAMES)
    return found


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light"), (1920, "dark")])
def test_nothing_is_cut_and_colours_follow_the_screen(
    browser: Browser, reports: dict[str, Path], width: int, scheme: Literal["light", "dark"]
) -> None:
    for path in reports.values():
        page = shown(browser, path, width, scheme)
        assert page.evaluate(OUTSIDE) == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper, ink = ([int(part) > 127 for part in one[4:-1].split(", ")] for one in page.evaluate(COLOURS))
        assert (all(paper), any(ink)) == ((True, False) if scheme == "light" else (False, True))
        page.close()


def test_each_table_has_the_columns_of_its_run(browser: Browser, reports: dict[str, Path]) -> None:
    page = shown(browser, reports["search"], 1280, "light")
    figures, *others = columns(page)
    assert figures[:4] == ["rate", "stage", "offered/s", "achieved/s"] and figures[-1] == "objective"
    assert len(others) == 3 and all(names[:2] == ["rate", "stage"] for names in others)
    assert "triton 2.51.0 with ranker 1" in page.inner_text("dl")
    page.close()
    page = shown(browser, reports["closed"], 1280, "light")
    figures, *others = columns(page)
    assert figures[:4] == ["users", "requests/s", "documents/s", "requests"] and figures[-1] == "max"
    assert not [name for names in others for name in names if name in ("stage", "not sent") or "late" in name]
    page.close()


def test_failures_that_differ_in_a_time_are_one() -> None:
    (found,) = point(STEP, 40, None, 300).failures.items()
    assert found == ("h:1 is overloaded: student: work of … s waits for the engine: retry in … s", 300)
