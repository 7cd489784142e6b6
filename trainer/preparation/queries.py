"""Queries under one id for all that is the same to a person who types it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pyarrow as pa

from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger


def normalised(query: str) -> str:
    """NFKC, and single spaces between words."""
    return " ".join(unicodedata.normalize("NFKC", query).split())


def folded(query: str) -> str:
    return normalised(query).casefold()


def by_element(function: Callable[[str], object], result: pa.DataType | None = None) -> Callable[[pa.Array], pa.Array]:
    return lambda array: pa.array([function(each) for each in array.to_pylist()], type=result)


def group_queries(engine: Engine, ledger: Ledger, fold_case: bool) -> None:
    """Make ``queries`` (query_id, query, key) and ``forms`` (raw, query_id).

    A query's key is what its split hangs on: the normalised text, its case folded if wanted. Its text is the form that
    was typed most often, the first in the alphabet of equals. It has the id that the files give it, the first of
    several, or else one made of the key.
    """
    engine.add("normalised", by_element(normalised, pa.string()), "VARCHAR")
    engine.add("query_key", by_element(folded if fold_case else normalised, pa.string()), "VARCHAR")
    engine.run("""
        CREATE TABLE typed AS SELECT raw, sum(n)::BIGINT AS n, normalised(raw) AS form, query_key(raw) AS key FROM (
            SELECT raw, sum(n) AS n FROM impressions GROUP BY raw UNION ALL SELECT raw, 0 FROM named
            UNION ALL SELECT raw, 0 FROM judgments WHERE raw IS NOT NULL
            UNION ALL SELECT raw, 0 FROM run WHERE raw IS NOT NULL
        ) GROUP BY raw
    """)
    _give_one_text(engine, ledger)
    engine.run("""
        CREATE TABLE queries AS
        SELECT coalesce(any_value(given), 'q' || md5(key)[1:16]) AS query_id, key,
            max_by(form, (n, -rank)) AS query, sum(n)::BIGINT AS n
        FROM (SELECT key, form, sum(n) AS n, row_number() OVER (PARTITION BY key ORDER BY form) AS rank
            FROM typed WHERE key <> '' GROUP BY key, form)
        LEFT JOIN (SELECT key, min(query_id) AS given FROM named JOIN typed USING (raw) GROUP BY key) USING (key)
        GROUP BY key
    """)
    ledger.drop("blank queries", "raw NOT IN (SELECT raw FROM typed WHERE key <> '')")
    engine.run("CREATE TABLE forms AS SELECT raw, query_id FROM typed JOIN queries USING (key)")
    engine.run(
        "CREATE TABLE ids AS SELECT DISTINCT named.query_id AS given, forms.query_id FROM named JOIN forms USING (raw)"
    )


def _give_one_text(engine: Engine, ledger: Ledger) -> None:
    """Take a query id that has several texts with the first one only."""
    several = "SELECT named.*, min(key) OVER (PARTITION BY query_id) AS first, key FROM named JOIN typed USING (raw)"
    ledger.note("query ids with another text, too", f"FROM ({several}) WHERE key <> first", "query_id")
    engine.run(f"CREATE OR REPLACE TABLE named AS SELECT * EXCLUDE (first, key) FROM ({several}) WHERE key = first")
