"""``trainer.prepare`` names the rows, files and mappings that it cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.logs import (
    DOCUMENTS,
    counts,
    impressions,
    prepared,
    write,
    write_text,
)
from tests.support.stages import fails
from trainer import prepare

MAPPING = '[log]\nfiles = ["*.jsonl"]\n[log.columns]\nquery = "query"\ndocument = "doc_id"\n'
GOOD = {"session": "s", "time": 1, "query": "cheap bike", "doc_id": "d0", "position": 1, "click": 1}
PAGE = {"query": "q", "doc_ids": ["d0"], "clicks": [1]}
TSV = "session\tquery\tdoc_id\tposition\tclick\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("impressions.jsonl", {**GOOD, "position": 0}, ":1: position '0' is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "position": None, "click": 0}, ":1: position NULL is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "position": None}, ":1: a click without a position: it was not shown"),
        ("impressions.jsonl", {**GOOD, "position": "top"}, ":1: position 'top' is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "click": "maybe"}, ":1: click 'maybe' is no count"),
        ("impressions.jsonl", {**GOOD, "dwell_s": -3}, ":1: dwell '-3' is no time"),
        ("impressions.jsonl", {**GOOD, "time": "noon"}, ":1: time 'noon' is neither seconds nor a date"),
        ("impressions.jsonl", {**GOOD, "query": " "}, ":1: no query"),
        ("impressions.jsonl", {**GOOD, "doc_id": None}, ":1: no document"),
        ("impressions.jsonl", f"{json.dumps(GOOD)}\n{{half", ":2: no JSON"),
        ("impressions.jsonl", [], "nothing is left of impressions"),
        ("impressions.parquet", "PAR1", ": cannot be read: "),
        ("impressions.txt", "x", "neither its name nor 'format'"),
        ("impressions.tsv", f"{TSV}s\tq\td0\t1\t1\n".replace("position", "place"), "no column 'position'"),
        ("impressions.tsv", f"{TSV}s\tq\td0\t1\t1\ns\tq\td0\tone\t1\n", ":3: position 'one'"),
        ("impressions.tsv", f"{TSV}s\tq\n", ":2: no document"),
        ("pages.jsonl", {"query": "q", "doc_ids": ["d0", "d1"], "clicks": [1]}, "click has 1 values for 2 documents"),
        ("pages.jsonl", {"query": "q", "doc_ids": "d0", "clicks": [1]}, ":1: document is no list"),
        ("pages.jsonl", {**PAGE, "positions": [0]}, ":1: position '0'"),
        ("pages.jsonl", {**PAGE, "positions": 1}, ":1: position is no list"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_taken_is_named(
    name: str, content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw/documents.jsonl", DOCUMENTS)
    text = content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in [content] if row)
    write_text(tmp_path / "raw" / name, text)
    mapping = "pages" if name.startswith("pages") else "impressions"
    flags = ["--mapping", mapping, "--input", tmp_path / "raw", "--output_dir", tmp_path / "out"]
    assert message in fails(prepare, capsys, *flags)
    assert [*tmp_path.iterdir()] == [tmp_path / "raw"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("[log\n", "no TOML"),
        ("[clicks]\n", "[clicks] is none of log, documents, queries, judgments, run"),
        ('[log]\nfiles = ["*.jsonl"]\n', "'columns' must be a table of names"),
        ('[log]\nfiles = ["*.jsonl"]\ncolumns = { query = "query" }\n', "no column is mapped to 'document'"),
        ('[log]\nfile = "x"\ncolumns = {}\n', "'file' is none of"),
        (MAPPING + 'rank = "position"\n', "'rank' is none of"),
        (MAPPING + 'position = "place"\n', "no row has 'place' for 'position'"),
        (MAPPING + 'position = "json ->> 1 +"\n', "Parser Error"),
        (MAPPING.replace("*.jsonl", "*.tsv"), "no file in "),
        ('[documents]\nfiles = ["*.jsonl"]\ncolumns = { document = "doc_id" }\n', "no files of a log"),
        (MAPPING + 'clicked = "click"\n', "'clicked' is a list of pages = true"),
        (
            MAPPING.replace("[log]", "[log]\npages = true", 1).replace('"doc_id"', "\"[json ->> 'doc_id']\"")
            + 'clicked = "doc_id"\n',
            ":1: clicked is no list",
        ),
        (MAPPING + "[documents]\npages = true\n", "'pages' is for [log]"),
        (MAPPING.replace("[log]", "[log]\nsplits = true", 1), "'splits' is for [judgments]"),
        (MAPPING.replace('"doc_id"', '"doc_id"\n[log.colums]'), "'colums' is none of"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(
    mapping: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "impressions.jsonl", impressions())
    path = write_text(tmp_path / "own.toml", mapping)
    assert message in fails(prepare, capsys, "--mapping", path, "--output_dir", tmp_path / "out")


def test_files_that_cannot_be_read_and_schemas_that_drift_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raw"
    write(folder / "documents.jsonl", DOCUMENTS)
    rows = impressions()
    half = write(folder / "impressions/c.jsonl.gz", rows[80:])
    half.write_bytes(half.read_bytes()[:-30])
    write(folder / "impressions/a.parquet", rows[:40])
    write(folder / "impressions/b.parquet", [{**row, "position": f"{row['position']}"} for row in rows[40:80]])
    write(folder / "impressions/d.parquet", [{"rank": row.pop("position"), **row} for row in impressions()[80:120]])
    flags = ["--mapping", "impressions", "--input", folder, "--output_dir", tmp_path / "out"]
    assert f"{folder}/impressions/c.jsonl.gz: cannot be read: " in fails(prepare, capsys, *flags, "--max_failed", 1)
    prepared(folder, tmp_path / "out", "--max_failed", 2)
    found = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["row"]) for each in found] == [("c.jsonl.gz", None), ("d.parquet", None)]
    assert "no column 'position'" in found[1]["reason"]
    assert counts(tmp_path / "out")["impressions"] == 80
