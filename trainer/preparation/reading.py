"""Reads files into tables of strings, with the number of each row."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import duckdb

from trainer.data.records import DataError
from trainer.preparation.engine import Engine, name, text
from trainer.preparation.failures import Failures
from trainer.preparation.mapping import COLUMNS, Source

LISTS = ("document", "title", "summary", "position", "click", "dwell", "click_time", "clicked")  # of a page
Headers = dict[Path, list[str] | None]  # the names of each file's columns, None for JSON, which has others in each line
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")  # a column's name, in JSON with those of the objects around it
NUMBER = re.compile(r"\d+")
ROW = name("\x1frow")  # a row's number, beside columns of any name
# DuckDB's errors that an expression is at fault for, not a file.
OF_THE_MAPPING = (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException)


def check_columns(source: Source, headers: Headers) -> None:
    """Raises DataError for a mapped column that none of the files has."""
    for column in source.columns:
        errors = [_error_of(source, path, header, column) for path, header in headers.items()]
        if errors and all(errors):
            raise DataError(f"{source.where}: {next(iter(headers))}: {errors[0]}")


def staged(
    engine: Engine, source: Source, failures: Failures, check: Callable[[Source, Headers], None]
) -> Iterator[tuple[Path, set[str]]]:
    """Each file of a source, when its rows are in the table ``staged``, and the columns that have a value for it.

    The table has the number of the row and a string for every column of the source's kind. Raises DataError for a
    mapping that no file fits, and for more failures than there may be.
    """
    headers = dict(_headers(engine, source, failures))
    check(source, headers)
    for path, header in headers.items():
        try:
            expressions = _expressions(source, path, header)
        except DataError as error:  # the others have the column: the schema drifted
            failures.add_file(path, str(error))
            continue
        try:
            _stage(engine, source, path, expressions, failures)
            absent = _absent(engine, source, path, expressions)
        except OF_THE_MAPPING as error:
            raise DataError(f"{source.where}: {' '.join(str(error).split())}") from error
        except duckdb.Error as error:
            failures.add_unreadable(path, error)
            continue
        if absent:
            failures.add_file(path, f"no row has {source.columns[absent]!r} for {absent!r}; if it may be so, add a '?'")
            continue
        yield path, set(expressions)


def _headers(engine: Engine, source: Source, failures: Failures) -> Iterator[tuple[Path, list[str] | None]]:
    for path in source.files:
        if source.format_of(path) in ("jsonl", "spaced"):
            yield path, None
            continue
        try:
            yield path, [column for column, *_ in engine.run(f"DESCRIBE {_rows(source, path)}") if name(column) != ROW]
        except duckdb.Error as error:
            failures.add_unreadable(path, error)


def _error_of(source: Source, path: Path, header: list[str] | None, column: str) -> str:
    try:
        _expression(source, path, header, column)
    except DataError as error:
        return str(error)
    return ""


def _expressions(source: Source, path: Path, header: list[str] | None) -> dict[str, str]:
    found = {column: _expression(source, path, header, column) for column in source.columns}
    return {column: expression for column, expression in found.items() if expression is not None}


def _expression(source: Source, path: Path, header: list[str] | None, column: str) -> str | None:
    """SQL for a column of the mapping, None where it may be absent and is. Raises DataError where it may not."""
    given = source.columns[column]
    wanted = given.removesuffix("?")
    if header is not None and wanted in header:
        return name(wanted)
    if NUMBER.fullmatch(wanted) or not PATH.fullmatch(wanted):
        return wanted
    kind = source.format_of(path)
    if kind == "spaced" and (number := re.fullmatch(r"column(\d+)", wanted)):
        return f"words[{int(number[1]) + 1}]"
    if kind == "jsonl":
        key = text(_key(wanted))
        # A list that is null is absent, as in Parquet.
        return f"nullif(json -> {key}, 'null')" if source.pages and column in LISTS else f"json ->> {key}"
    if given.endswith("?"):
        return None
    raise DataError(f"no column {wanted!r} for {column!r}; it has {', '.join(header or ['column0, column1, ...'])}")


def _absent(engine: Engine, source: Source, path: Path, expressions: Mapping[str, str]) -> str | None:
    """A column that must be there and is a key of no line of a JSON file."""
    wanted = [column for column in expressions if PATH.fullmatch(source.columns[column])]
    if source.format_of(path) != "jsonl" or not wanted or not engine.number("SELECT count(*) FROM staged"):
        return None
    for column in wanted:
        empty = not engine.number(f"SELECT count({column}) FROM staged") and column != "clicked"
        key = text(_key(source.columns[column]))
        if empty and not engine.number(f"SELECT count(*) FROM ({_rows(source, path)}) WHERE json_exists(json, {key})"):
            return column
    return None


def _key(column: str) -> str:
    return "$." + ".".join(name(part) for part in column.split("."))


def _rows(source: Source, path: Path) -> str:
    """A query for the columns of a file and the number of each row."""
    file = text(glob.escape(str(path)))  # DuckDB takes a name as a pattern
    match source.format_of(path):
        case "parquet":
            return (
                f"SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS {ROW} "
                f"FROM read_parquet({file}, file_row_number = true)"
            )
        case "jsonl":
            rows = f"read_json_objects({file}, format = 'newline_delimited', ignore_errors = true)"
            return f"SELECT json, row_number() OVER () AS {ROW} FROM {rows}"
        case "spaced":
            rows = f"read_csv({file}, columns = {{'line': 'VARCHAR'}}, header = false, delim = '\x1f', quote = '')"
            return (
                f"SELECT string_split_regex(trim(line), '\\s+') AS words, {ROW} "
                f"FROM (SELECT line, row_number() OVER () AS {ROW} FROM {rows}) WHERE trim(line) <> ''"
            )
        case kind:
            marks = "delim = ',', quote = '\"'" if kind == "csv" else "delim = '\t', quote = ''"
            rows = f"read_csv({file}, all_varchar = true, header = {str(source.header).lower()}, {marks}, "
            rows += "null_padding = true, parallel = false, store_rejects = true)"
            return f"SELECT *, row_number() OVER () + {int(source.header)} AS {ROW} FROM {rows}"


def _stage(engine: Engine, source: Source, path: Path, expressions: Mapping[str, str], failures: Failures) -> None:
    engine.run("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    if source.format_of(path) == "jsonl":  # a line that is no JSON is NULL
        rows = f"FROM ({_rows(source, path)}) WHERE json IS NULL"
        failures.add(f"SELECT {text(path)}, {ROW}, 'no JSON', NULL {rows}")
    if source.pages:
        _stage_pages(engine, source, path, expressions, failures)
    else:
        _stage_rows(engine, source, path, expressions)
    if engine.number("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'reject_errors'"):
        failures.add(f"SELECT {text(path)}, line, error_message, csv_line FROM reject_errors")


def _taken(source: Source, path: Path) -> str:
    """The rows of a file without lines that are no JSON, which ``_stage`` has counted."""
    return f"FROM ({_rows(source, path)})" + " WHERE json IS NOT NULL" * (source.format_of(path) == "jsonl")


def _stage_rows(engine: Engine, source: Source, path: Path, expressions: Mapping[str, str]) -> None:
    values = [f"({expressions.get(each, 'NULL')})::VARCHAR AS {each}" for each in fields(source.kind)]
    engine.run(f"CREATE OR REPLACE TABLE staged AS SELECT {ROW} AS line, {', '.join(values)} {_taken(source, path)}")


def _stage_pages(
    engine: Engine, source: Source, path: Path, expressions: Mapping[str, str], failures: Failures
) -> None:
    """A row for each document of a page; a page whose lists do not fit each other fails as a whole."""
    lists = [column for column in LISTS if column in expressions]
    values = [
        f"TRY_CAST(({expressions.get(each, 'NULL')}) AS VARCHAR{'[]' if each in LISTS else ''}) AS {each}"
        for each in fields(source.kind)
    ]
    values += [f"({expressions[each]}) IS NOT NULL AS has_{each}" for each in lists]
    engine.run(f"CREATE OR REPLACE TABLE pages AS SELECT {ROW} AS line, {', '.join(values)} {_taken(source, path)}")
    reason = " ".join(["CASE WHEN document IS NULL THEN 'document is no list'", *map(_page_check, lists), "END"])
    failures.add(f"SELECT {text(path)}, line, {reason} AS reason, query FROM pages WHERE reason IS NOT NULL")
    items = [_item(source, column, column in expressions) for column in fields(source.kind)]
    engine.run(
        f"CREATE OR REPLACE TABLE staged AS SELECT line, {', '.join(items)} FROM "
        f"(SELECT *, unnest(range(1, len(document) + 1)) AS place FROM pages WHERE ({reason}) IS NULL)"
    )
    engine.run("DROP TABLE pages")


def _page_check(column: str) -> str:
    no_list = f"WHEN has_{column} AND {column} IS NULL THEN '{column} is no list' "
    if column == "clicked":
        return no_list + (
            "WHEN NOT list_has_all(document, clicked) THEN 'a click on a document that the page does not show: ' || "
            "list_filter(clicked, lambda each: NOT list_contains(document, each))[1]"
        )
    return no_list + (
        f"WHEN len({column}) <> len(document) THEN '{column} has ' || len({column}) || ' values for ' || len(document) "
        "|| ' documents'"
    )


def _item(source: Source, column: str, mapped: bool) -> str:
    """A page's value for one of its documents."""
    if column == "position" and not mapped:
        return "place::VARCHAR AS position"
    if column == "position" and source.columns[column].endswith("?"):
        return "CASE WHEN has_position THEN position[place] ELSE place::VARCHAR END AS position"
    if column == "clicked":
        return "NULL::VARCHAR AS clicked"
    if column == "click":
        return "coalesce(click[place], list_contains(clicked, document[place])::VARCHAR) AS click"
    return f"{column}[place] AS {column}" if column in LISTS else column


def fields(kind: str) -> list[str]:
    """The columns of a kind's table, in the order of the alphabet."""
    return sorted(set.union(*COLUMNS[kind]))
