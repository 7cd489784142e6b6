"""The report of a preparation, as a page for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2

from trainer.data.records import DataError
from trainer.measures.baselines import RUN
from trainer.preparation.clicks import Correction
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Entry, Ledger

PAGE = Path(__file__).with_name("report.html")
SAMPLE = 2000  # pairs whose tokens are counted
SHOWN = 20  # leaks and reasons, at most

Bars = list[tuple[float, int]]  # a value and how many have it
Length = tuple[Callable[[str], int], str]  # of a text, and its unit


@dataclass(frozen=True)
class Position:
    """A position of the page: how often shown and clicked, and its propensity if clicks are corrected."""

    position: int
    shown: int
    clicks: int
    propensity: float | None


@dataclass(frozen=True)
class Report:
    """The counts of a preparation: ``impressions`` of the log are those kept, the dropped and the failed ones."""

    rows: dict[str, int]  # by kind
    impressions: int  # kept
    failures: int  # rows and files
    failed: list[Entry]  # the most frequent reasons
    dropped: list[Entry]
    notes: list[Entry]
    files: dict[str, dict[str, int]]
    sources: dict[str, int]  # pairs of the pool
    frequencies: Bars  # queries by impressions, to powers of two
    documents: Bars  # queries by documents in the pool
    lengths: Bars  # pairs of a sample of the pool, by tokens
    unit: str  # of the lengths
    positions: list[Position]
    correction: Correction
    leaks: list[tuple[str, str, str]]  # a query, what it nearly is, and where that is


def report_of(
    engine: Engine,
    ledger: Ledger,
    rows: dict[str, int],
    correction: Correction,
    files: dict[str, dict[str, int]],
    length: Length,
) -> Report:
    """The report of the engine's tables and of what the steps before it have counted."""
    return Report(
        rows=rows,
        impressions=engine.number("SELECT sum(shown) FROM pairs"),
        failures=engine.number("SELECT count(*) FROM failed"),
        failed=[Entry(*row) for row in engine.run(_failed())],
        dropped=ledger.dropped,
        notes=ledger.notes,
        files=files,
        sources=dict(engine.run("SELECT source, count(*) FROM pool GROUP BY source ORDER BY source")),
        frequencies=_bars(engine, "1 << floor(log2(n))::BIGINT", "queries WHERE n > 0"),
        documents=_bars(engine, "n", "(SELECT count(*) AS n FROM pool GROUP BY query_id)"),
        lengths=_lengths(engine, length[0]),
        unit=length[1],
        positions=[Position(*row) for row in engine.run(_positions())],
        correction=correction,
        leaks=[(own, other, split) for own, other, split in engine.run(_leaks())],
    )


def write_report(report: Report, folder: Path) -> None:
    """``prepare.html`` and ``prepare.json``."""
    from trainer.preparation.plots import draw  # matplotlib takes a while to load

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1) + "\n"
    (folder / "prepare.html").write_text(page.render(report=report, pictures=draw(report)), encoding="utf-8")
    (folder / "prepare.json").write_text(text, encoding="utf-8")


def _bars(engine: Engine, value: str, rows: str) -> Bars:
    return [
        (value, count) for value, count in engine.run(f"SELECT {value}, count(*) FROM {rows} GROUP BY 1 ORDER BY 1")
    ]


def _failed() -> str:
    """The digits and names within a reason are left out to group by it."""
    return rf"""
        SELECT kind, count(*), min(file || coalesce(':' || row, '') || ': ' || reason) FROM (
            SELECT *, regexp_replace(reason, '''.*''|\d+', '…', 'g') AS kind FROM failed
        ) GROUP BY kind ORDER BY count(*) DESC, kind LIMIT {SHOWN}
    """


def _positions() -> str:
    return """
        SELECT position, sum(shown)::BIGINT, sum(clicks)::BIGINT, any_value(share)
        FROM cells LEFT JOIN propensities USING (position) WHERE position IS NOT NULL GROUP BY 1 ORDER BY 1
    """


def _leaks() -> str:
    return f"""
        SELECT a.query, b.query, coalesce(split, 'held out') FROM near JOIN queries a USING (query_id)
        JOIN queries b ON b.query_id = other LEFT JOIN splits ON splits.query_id = other ORDER BY ALL LIMIT {SHOWN}
    """


def _lengths(engine: Engine, length: Callable[[str], int]) -> Bars:
    """Lengths of query, title and summary together, without the marks between them."""
    pairs = engine.run(f"""
        SELECT query || ' ' || title || ' ' || summary FROM (
            SELECT * FROM pool ORDER BY md5(query_id || ' ' || document) LIMIT {SAMPLE}
        ) JOIN queries USING (query_id) JOIN documents USING (document)
    """)
    return [*sorted(Counter(length(text) for (text,) in pairs).items())]


def length_in(model: str | None) -> Length:
    """Tokens of a model, or words. Raises DataError where the model's tokenizer cannot be loaded."""
    if model is None:
        return lambda text: len(RUN.findall(text)), "words"
    from transformers import AutoTokenizer  # which takes a while to load

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"--model {model}: no tokenizer: {reason}") from error
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), f"tokens of {model}"
