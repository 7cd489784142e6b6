"""Strings of a log, of texts, judgments and runs into typed tables; each row that cannot be taken says why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from pathlib import Path

from trainer.data.records import DataError
from trainer.preparation.engine import Engine, text
from trainer.preparation.failures import Failures
from trainer.preparation.mapping import Source
from trainer.preparation.reading import Headers, check_columns, staged

SPLITS = ("train", "dev", "test")

TABLES = """
CREATE MACRO number(x) AS CASE WHEN isfinite(TRY_CAST(x AS DOUBLE)) THEN TRY_CAST(x AS DOUBLE) END;
CREATE MACRO whole(x) AS CASE WHEN number(x) = floor(number(x)) THEN TRY_CAST(number(x) AS INTEGER) END;
CREATE MACRO times(x) AS coalesce(whole(x), TRY_CAST(TRY_CAST(x AS BOOLEAN) AS INTEGER));
CREATE MACRO seconds(x) AS CASE WHEN number(x) IS NULL THEN epoch(TRY_CAST(x AS TIMESTAMPTZ))
    WHEN number(x) >= 1e11 THEN number(x) / 1000 ELSE number(x) END;
CREATE MACRO shown(x) AS coalesce('''' || x[1:80] || '''', 'NULL');
CREATE MACRO blank(x) AS x IS NULL OR trim(x) = '';
CREATE TABLE impressions (session VARCHAR, time DOUBLE, raw VARCHAR, document VARCHAR, position INTEGER, click INTEGER,
    dwell DOUBLE, click_time DOUBLE, file VARCHAR, line BIGINT, place VARCHAR AS (file || ':' || line),
    n BIGINT AS (1));
CREATE TABLE texts (document VARCHAR, title VARCHAR, summary VARCHAR, from_log BOOLEAN, n BIGINT);
CREATE TABLE named (query_id VARCHAR, raw VARCHAR, file VARCHAR, line BIGINT);
CREATE TABLE judgments (query_id VARCHAR, raw VARCHAR, document VARCHAR, label DOUBLE, split VARCHAR, file VARCHAR,
    line BIGINT);
CREATE TABLE run (query_id VARCHAR, raw VARCHAR, document VARCHAR, rank INTEGER, file VARCHAR, line BIGINT);
"""
# Column, what is wrong with it, and how that is said; a column that no value is mapped to is not looked at.
Check = tuple[str, str, str]
NO_DOCUMENT: Check = ("document", "blank(document)", "'no document'")
NO_QUERY: Check = ("query", "blank(query)", "'no query'")
NO_QUERY_ID: Check = ("query_id", "blank(query_id)", "'no query_id'")
CHECKS: dict[str, Sequence[Check]] = {
    "log": (
        NO_QUERY,
        NO_DOCUMENT,
        ("session", "blank(session)", "'no session'"),
        ("time", "seconds(time) IS NULL", "'time ' || shown(time) || ' is neither seconds nor a date'"),
        ("click", "coalesce(times(click), -1) < 0 AND click IS NOT NULL", "'click ' || shown(click) || ' is no count'"),
        ("position", "position IS NULL AND times(click) > 0", "'a click without a position: it was not shown'"),
        ("position", "coalesce(whole(position), 0) < 1", "'position ' || shown(position) || ' is not 1, 2, ...'"),
        ("dwell", "dwell IS NOT NULL AND coalesce(number(dwell), -1) < 0", "'dwell ' || shown(dwell) || ' is no time'"),
        ("click_time", "click_time IS NOT NULL AND seconds(click_time) IS NULL",
         "'click_time ' || shown(click_time) || ' is neither seconds nor a date'"),
    ),
    "documents": (NO_DOCUMENT,),
    "queries": (NO_QUERY_ID, NO_QUERY),
    "judgments": (
        NO_DOCUMENT, NO_QUERY, NO_QUERY_ID,
        ("label", "number(label) IS NULL", "'label ' || shown(label) || ' is no number'"),
    ),
    "run": (
        NO_DOCUMENT, NO_QUERY, NO_QUERY_ID,
        ("rank", "whole(rank) IS NULL", "'rank ' || shown(rank) || ' is no whole number'"),
    ),
}  # fmt: skip
ROWS = {
    "log": """impressions SELECT session, seconds(time), query, document, whole(position), coalesce(times(click), 0),
        number(dwell), seconds(click_time)""",
    "queries": "named SELECT query_id, query",
    "judgments": "judgments SELECT query_id, query, document, number(label), {split}",
    "run": "run SELECT query_id, query, document, whole(rank)",
}


def read_all(
    engine: Engine,
    sources: Sequence[Source],
    failures: Failures,
    check: Callable[[Source, Headers], None] = check_columns,
) -> dict[str, int]:
    """Make and fill the tables from all files; the rows of each kind that came in, those that failed included.

    ``check`` sees the columns of a source's files first. Raises DataError as ``staged`` does.
    """
    engine.run(TABLES)
    counts = dict[str, int]()
    for source in sources:
        failed = failures.count
        files = staged(engine, source, failures, check)
        good = sum(_take(engine, source, path, mapped, failures) for path, mapped in files)
        counts[source.kind] = counts.get(source.kind, 0) + good + failures.count - failed
    engine.run("DROP TABLE IF EXISTS staged")
    return counts


def _take(engine: Engine, source: Source, path: Path, mapped: Set[str], failures: Failures) -> int:
    """Move the good rows of a file on, and return their number."""
    if source.pages:
        mapped = mapped | {"position"}
    checks = [
        f"WHEN {_if_there(source, column)} ({wrong}) THEN {said}"
        for column, wrong, said in CHECKS[source.kind]
        if column in mapped
    ]
    reason = f"CASE {' '.join(checks)} END"
    failures.add(f"SELECT {text(path)}, line, {reason} AS reason, to_json(staged) FROM staged WHERE reason IS NOT NULL")
    good = f"FROM staged WHERE ({reason}) IS NULL"
    if source.kind in ROWS:
        rows = ROWS[source.kind].format(split=_split(source, path))
        engine.run(f"INSERT INTO {rows}, {text(path)}, line {good}")
    if mapped & {"title", "summary"}:
        engine.run(
            f"INSERT INTO texts SELECT document, coalesce(title, ''), coalesce(summary, ''), {source.kind == 'log'}, "
            f"count(*) {good} AND NOT (blank(title) AND blank(summary)) GROUP BY ALL"
        )
    return engine.number(f"SELECT count(*) {good}")


def _if_there(source: Source, column: str) -> str:
    return f"{column} IS NOT NULL AND" if source.columns.get(column, "").endswith("?") else ""


def _split(source: Source, path: Path) -> str:
    if not source.splits:
        return "NULL"
    named = {*re.split(r"[^a-z]+", path.name.lower())} & {*SPLITS}  # also train-00, qrels.dev.small
    if len(named) != 1:
        raise DataError(f"{path}: {source.where} has splits = true, so its name must have one of {', '.join(SPLITS)}")
    return text(*named)
