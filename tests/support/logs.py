"""Raw logs of a search engine, as files in the layouts that ``trainer.prepare`` reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.stages import run
from trainer import prepare
from trainer.data.records import QueryGroup, read_groups

Row = dict[str, Any]
CLICKED = ("log", "log-dev", "log-test")
HALVES = ["--dev_share", 0.25, "--test_share", 0.25]
QUERIES = [
    "cheap bike", "garden chair", "blue lamp", "mend a tent", "oak table", "quiet fan", "red kettle", "steel pan",
    "tall ladder", "warm coat", "wool hat", "yellow boots", "zip bag", "deep sink", "fast printer", "green hose",
]  # fmt: skip
DOCUMENTS: list[Row] = [
    {"doc_id": f"d{number}", "title": f"About {query} {number}", "summary": f"All there is on {query}, part {number}."}
    for number, query in enumerate(query for query in QUERIES for _ in range(3))
]


def impressions(sessions: int = 60) -> list[Row]:
    """A query in each session, its three documents and one of another query, in turning places, the first clicked."""
    rows = []
    for session in range(sessions):
        number = session % len(QUERIES)
        shown = [3 * number + place for place in range(3)] + [3 * ((number + 1) % len(QUERIES))]
        shown = shown[session % 3 :] + shown[: session % 3]
        for position, document in enumerate(shown, start=1):
            clicked = document == 3 * number
            rows.append({
                "session": f"s{session}", "time": 1_700_000_000 + 60 * session, "query": QUERIES[number],
                "doc_id": f"d{document}", "position": position, "click": int(clicked),
                "dwell_s": 20 + session % 2 * 20 if clicked else None,
            })  # fmt: skip
    return rows


def pages(rows: Iterable[Row]) -> list[Row]:
    found = []
    for (session, time, query), page in groupby(rows, key=lambda row: (row["session"], row["time"], row["query"])):
        of_page = list(page)
        lists = {"doc_ids": "doc_id", "positions": "position", "clicks": "click", "dwell_s": "dwell_s"}
        found.append({"session": session, "time": time, "query": query}
                     | {name: [row[column] for row in of_page] for name, column in lists.items()})  # fmt: skip
    return found


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write Parquet, JSON lines, CSV or TSV by the name's ending, the last three perhaps packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif ".jsonl" in path.suffixes:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        text, csv_file = io.StringIO(), ".csv" in path.suffixes
        writer = csv.DictWriter(
            text, list(rows[0]), delimiter="," if csv_file else "\t", lineterminator="\n",
            quoting=csv.QUOTE_MINIMAL if csv_file else csv.QUOTE_NONE, quotechar='"' if csv_file else None,
        )  # fmt: skip
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


def prepared(
    folder: Path, output: Path, *flags: object, mapping: object = "impressions"
) -> dict[str, list[QueryGroup]]:
    """The records of each file that the command makes of a folder."""
    run(prepare, "--mapping", mapping, "--input", folder, "--output_dir", output, "--threads", 1, *flags)
    return {path.stem: read_groups(path) for path in output.glob("*.jsonl") if path.stem != "failed"}


def counts(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "prepare.json").read_text())
    return found


def raw(folder: Path, rows: list[Row] | None = None) -> Path:
    """One row an impression, with the documents' texts in a file of their own."""
    write(folder / "impressions.jsonl", impressions() if rows is None else rows)
    write(folder / "documents.jsonl", DOCUMENTS)
    return folder


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.jsonl")}


def groups(found: dict[str, list[QueryGroup]], *names: str) -> dict[str, QueryGroup]:
    return {group.query: group for name in names or found for group in found.get(name, [])}
