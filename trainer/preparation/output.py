"""The files of a preparation, a query a line; ids decide the order, which tells nothing of clicks and labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.addresses import shown
from trainer.data.records import JudgedDocument, QueryGroup, encoded_groups
from trainer.preparation.engine import Engine

LOGS = {"train": "log", "dev": "log-dev", "test": "log-test"}
JUDGED = {"train": "judged", "dev": "dev", "test": "test"}
CLICKED = "SELECT query_id, document, NULL AS label, {clicks} AS clicks FROM pairs WHERE {clicks} > 0"
GRADED = "SELECT query_id, document, label, 0 AS clicks FROM labels"
POOL = "SELECT query_id, document, NULL AS label, 0 AS clicks FROM pool"


def write_all(engine: Engine, folder: Path, weighted: bool) -> dict[str, dict[str, int]]:
    """Queries and pairs of each file that has any, by its name. Clicks are weights if ``weighted``."""
    clicked = CLICKED.format(clicks="weight" if weighted else "clicks")
    wanted = {f"{name}.jsonl": (clicked, split) for split, name in LOGS.items()}
    wanted |= {f"{name}.jsonl": (GRADED, split) for split, name in JUDGED.items()}
    wanted["pool.jsonl"] = (POOL, "train")
    counts = dict[str, dict[str, int]]()
    for name, (pairs, split) in wanted.items():
        rows = f"FROM ({pairs}) SEMI JOIN (FROM splits WHERE split = '{split}') USING (query_id)"
        ((queries, total),) = engine.run(f"SELECT count(DISTINCT query_id), count(*) {rows}")
        if queries:
            counts[name] = {"queries": queries, "pairs": total}
            with (folder / name).open("wb") as file:
                file.writelines(encoded_groups(_groups(engine, rows)))
    return counts


def _groups(engine: Engine, rows: str) -> Iterator[QueryGroup]:
    ordered = f"""
        SELECT query_id, query, document, title, summary, label, clicks
        FROM (SELECT * {rows}) JOIN queries USING (query_id) JOIN documents USING (document)
        ORDER BY query_id, document
    """
    pairs = (pair for batch in engine.batches(ordered) for pair in batch.to_pylist())
    for query_id, group in groupby(pairs, key=lambda pair: str(pair["query_id"])):
        first, *others = group
        yield QueryGroup(query_id, first["query"], tuple(_document(pair) for pair in (first, *others)))


def _document(pair: dict[str, Any]) -> JudgedDocument:
    return JudgedDocument(pair["document"], pair["title"], pair["summary"], pair["label"], pair["clicks"])


def write_failed(engine: Engine, path: Path) -> None:
    """Write the rows and files that could not be read, one a line."""
    rows = "SELECT * FROM failed ORDER BY file, row, reason"
    path.write_text(
        "".join(
            shown(f"{line}\n")
            for batch in engine.batches(f"SELECT to_json(r) AS line FROM ({rows}) r")
            for line in batch["line"].to_pylist()
        ),
        encoding="utf-8",
    )
