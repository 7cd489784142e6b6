"""Documents once each: one text an id, one id a text, and one id for texts that are nearly the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from trainer.collection.words import units
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger
from trainer.preparation.queries import by_element

PERMUTATIONS = 128
MISSED = 0.9  # weight of a pair that no bucket joins, against one that is compared in vain
WORDS = 3  # of a shingle


def one_of_each(engine: Engine, ledger: Ledger, near: float) -> None:
    """Make ``documents`` (document, title, summary) and ``kept`` (alias, document), which has every known id.

    Of several texts of an id, one of the collection's goes before those of the log, then the most frequent, then the
    first in the alphabet. Of several ids of a text, the first stays; so it does for texts of which more than the share
    ``near`` of all their shingles of words is common to both (0: they are not looked for).
    """
    engine.run("""
        CREATE TABLE chosen AS SELECT document, title, summary, several FROM (
            SELECT *, row_number() OVER best AS place, count(*) OVER (PARTITION BY document) > 1 AS several FROM (
                SELECT document, title, summary, from_log, sum(n) AS n FROM texts GROUP BY ALL)
            WINDOW best AS (PARTITION BY document ORDER BY from_log, n DESC, title, summary)
        ) WHERE place = 1
    """)
    ledger.note("document ids with several texts", "FROM chosen WHERE several", "document")
    engine.run("""
        CREATE TABLE kept AS
        SELECT document AS alias, min(document) OVER (PARTITION BY title, summary) AS document FROM chosen
    """)
    ledger.note("documents with the text of another", "FROM kept WHERE alias <> document", "alias || ' = ' || document")
    if near:
        _join_near(engine, ledger, near)
    engine.run("""
        CREATE TABLE documents AS SELECT document, title, summary, row_number() OVER (ORDER BY document) - 1 AS number
        FROM chosen SEMI JOIN kept USING (document)
    """)
    engine.run("DROP TABLE chosen; DROP TABLE texts")
    ledger.drop("documents without a text", "document NOT IN (SELECT alias FROM kept)", "document")


def _join_near(engine: Engine, ledger: Ledger, near: float) -> None:
    """Each document is compared with the first one of every bucket that it is in; what they are joined to stays."""
    engine.add("bands", bands(near), "VARCHAR[]")
    engine.add("shingles", by_element(shingles, pa.list_(pa.string())), "VARCHAR[]")
    worded = "SELECT document, title || ' ' || summary AS text FROM chosen SEMI JOIN kept USING (document)"
    engine.run(f"""
        CREATE TABLE suspects AS SELECT DISTINCT document, first FROM (
            SELECT document, min(document) OVER (PARTITION BY band) AS first FROM (
                SELECT document, unnest(bands(text)) AS band FROM ({worded}))
        ) WHERE first <> document
    """)
    engine.run(f"""
        CREATE TABLE joined AS SELECT document, min(first) AS first FROM (
            SELECT document, first, len(list_intersect(own, others)) AS common, len(own) + len(others) AS sizes FROM (
                SELECT suspects.*, shingles(a.text) AS own, shingles(b.text) AS others FROM suspects
                JOIN ({worded}) a ON a.document = suspects.document JOIN ({worded}) b ON b.document = first)
        ) WHERE common >= {near} * (sizes - common) GROUP BY document
    """)
    while engine.number("SELECT count(*) FROM joined SEMI JOIN joined AS above ON joined.first = above.document"):
        engine.run("UPDATE joined SET first = above.first FROM joined AS above WHERE joined.first = above.document")
    ledger.note("documents with nearly the text of another", "FROM joined", "document || ' ~ ' || first")
    engine.run("UPDATE kept SET document = joined.first FROM joined WHERE kept.document = joined.document")
    engine.run("DROP TABLE suspects; DROP TABLE joined")


def shingles(text: str) -> list[str]:
    """The distinct runs of three words (or characters of a script without spaces), or the whole of a shorter text."""
    words = units(text)
    return sorted({" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))})


def bands(near: float) -> Callable[[pa.Array], pa.Array]:
    """The names of the buckets of texts; texts that resemble each other by ``near`` share one of them most likely."""
    lsh = MinHashLSH(threshold=near, num_perm=PERMUTATIONS, weights=(1 - MISSED, MISSED))

    def of(texts: pa.Array) -> pa.Array:
        sets = ([each.encode("utf-8", "surrogatepass") for each in shingles(text)] for text in texts.to_pylist())
        hashes = (each.hashvalues for each in MinHash.generator(sets, num_perm=PERMUTATIONS, hashfunc=zlib.crc32))
        return pa.array([list(_buckets(values, lsh.b, lsh.r)) for values in hashes], type=pa.list_(pa.string()))

    return of


def _buckets(values: np.ndarray, count: int, width: int) -> list[str]:  # type: ignore[type-arg]
    return [f"{band} {values[band * width : (band + 1) * width].tobytes().hex()}" for band in range(count)]
