"""Grades of pairs whose query and document are known, one each."""

from __future__ import annotations

from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger


def grade(engine: Engine, ledger: Ledger) -> None:
    """Make ``labels`` (query_id, document, label) out of ``judged``, the highest of several of a pair.

    Judgments that belong to another split than their query are left out.
    """
    for rule, rows, example in (
        ("judgments of unknown queries", "query_id IS NULL", "document"),
        ("judgments of documents without a text", "document NOT IN (SELECT alias FROM kept)", "document"),
    ):
        ledger.note(rule, f"FROM judged WHERE {rows}", example)
    engine.run("""
        CREATE TABLE labels AS SELECT query_id, kept.document, max(label) AS label, min(label) AS least
        FROM judged JOIN splits USING (query_id) JOIN kept ON kept.alias = judged.document
        WHERE coalesce(judged.split, splits.split) = splits.split GROUP BY ALL
    """)
    ledger.note("pairs with several labels, of which the highest is taken", "FROM labels WHERE least < label",
                "query_id || ' ' || document")  # fmt: skip
