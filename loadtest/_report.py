"""Write a report: one HTML file that needs nothing else, and JSON for programs."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import jinja2

from client.files import appears_whole
from loadtest._records import Report, as_json
from loadtest._results import load

TEMPLATE = Path(__file__).with_name("_report.html")


class Paths(NamedTuple):
    html: Path
    json: Path


def report_paths(target: Path) -> Paths:
    """PATH.html and PATH.json for PATH.html; report.html and report.json in any other path, a directory."""
    html = target if target.suffix == ".html" else target / "report.html"
    return Paths(html, html.with_suffix(".json"))


def check_target(target: Path) -> None:
    """Check before a run that its report can be written. Raises ValueError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--report draws with matplotlib, which is not installed: pip install -e '.[loadtest]'")
    html = report_paths(target).html
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--report {target}: {error.strerror}") from error
    if not os.access(html.parent, os.W_OK) or html.is_dir():
        raise ValueError(f"--report {target}: {html} cannot be written")


def write(report: Report, paths: Paths) -> None:
    """Write both files, each whole or not at all. Raises DisRankerError."""
    texts = {paths.html: page(report), paths.json: json.dumps(as_json(report), indent=1, allow_nan=False) + "\n"}
    for path, text in texts.items():
        with appears_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")


def page(report: Report) -> str:
    from loadtest._plots import draw  # matplotlib takes a while to load, and only reports need it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    points = sorted(report.points, key=lambda point: point.rate or point.users or 0)
    return template.render(report=report, points=points, pictures=draw(report), load=load)
