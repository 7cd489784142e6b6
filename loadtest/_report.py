"""Write a report: one HTML file that needs nothing else, and JSON for programs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import jinja2

from client.files import appears_whole
from loadtest._records import Report
from loadtest._results import load
from loadtest._tables import WORDS, tables

TEMPLATE = Path(__file__).with_name("_report.html")


def html_path(target: Path) -> Path:
    """PATH.html as it is; report.html in any other path, a directory. The JSON lies beside it, with its name."""
    return target if target.suffix == ".html" else target / "report.html"


def check_target(target: Path) -> None:
    """Check before a run that its report can be written. Raises ValueError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--report draws with matplotlib, which is not installed: pip install -e '.[loadtest]'")
    html = html_path(target)
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--report {target}: {error.strerror}") from error
    if not os.access(html.parent, os.W_OK) or html.is_dir():
        raise ValueError(f"--report {target}: {html} cannot be written")


def write(report: Report, html: Path) -> Path:
    """Write both files, each whole or not at all. Returns the path of the JSON. Raises DisRankerError."""
    data = json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False) + "\n"
    for path, text in ((html, page(report)), (html.with_suffix(".json"), data)):
        with appears_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return path


def page(report: Report) -> str:
    from loadtest._plots import draw  # matplotlib takes a while to load, and only reports need it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    points = sorted(report.points, key=lambda point: point.rate or point.users or 0)
    made = tables(report, points)
    return template.render(report=report, points=points, pictures=draw(report), load=load, tables=made, words=WORDS)
