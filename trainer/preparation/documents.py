"""Documents once each: one text an id, one id a text, and one id for texts that are nearly the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from trainer.collection.words import units
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger
from trainer.preparation.queries import by_element

PERMUTATIONS = 128
STRICTEST = 0.99  # resemblance that buckets of several bands can be made for
MISSED = 0.9  # weight of a pair that no bucket joins, against one that is compared in vain
WORDS = 3  # of a shingle
WORDED = "SELECT document, title || ' ' || summary AS text FROM chosen SEMI JOIN kept USING (document)"


def one_of_each(
    engine: Engine, ledger: Ledger, near: float, banded: Callable[[Engine, float], str] | None = None
) -> None:
    """Make ``documents`` (document, title, summary) and ``kept`` (alias, document), which has every known id.

    Of several texts of an id, one of the collection's goes before those of the log, then the most frequent, then the
    first in the alphabet. Of several ids of a text, the first stays; so it does for two texts of which at least the
    share ``near`` of all their shingles of words is common to both (0: they are not looked for). ``banded`` gives SQL
    as ``banded_here`` does, which is the default.
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
        _join_near(engine, ledger, near, (banded or banded_here)(engine, near))
    engine.run("""
        CREATE TABLE documents AS SELECT document, title, summary, row_number() OVER (ORDER BY document) - 1 AS number
        FROM chosen SEMI JOIN kept USING (document)
    """)
    engine.run("DROP TABLE chosen; DROP TABLE texts")
    ledger.drop("documents without a text", "document NOT IN (SELECT alias FROM kept)", "document")


def banded_here(engine: Engine, near: float, texts: str = WORDED) -> str:
    """SQL for each document of ``texts`` with each of its buckets."""
    engine.add("bands", bands(near), "UBIGINT[]")
    return f"SELECT document, unnest(bands(text)) AS band FROM ({texts})"


def _join_near(engine: Engine, ledger: Ledger, near: float, banded: str) -> None:
    """Each document is compared with the first one of every bucket that it is in, and joins one that stays itself."""
    engine.add("shingles", by_element(shingles, pa.list_(pa.string())), "VARCHAR[]")
    engine.run(f"""
        CREATE TABLE suspects AS SELECT DISTINCT document, first FROM (
            SELECT document, min(document) OVER (PARTITION BY band) AS first FROM ({banded})
        ) WHERE first <> document
    """)
    engine.run(f"""
        CREATE TABLE alike AS SELECT document, first FROM (
            SELECT document, first, len(list_intersect(own, others)) AS common, len(own) + len(others) AS sizes FROM (
                SELECT suspects.*, shingles(a.text) AS own, shingles(b.text) AS others FROM suspects
                JOIN ({WORDED}) a ON a.document = suspects.document JOIN ({WORDED}) b ON b.document = first)
        ) WHERE common >= {near} * (sizes - common)
    """)
    engine.run("CREATE TABLE joined (document VARCHAR, first VARCHAR)")
    while engine.number("SELECT count(*) FROM alike"):  # once a link of the longest chain
        engine.run("""
            INSERT INTO joined SELECT document, min(first) FROM alike
            WHERE first NOT IN (SELECT document FROM alike) GROUP BY document;
            DELETE FROM alike WHERE document IN (SELECT document FROM joined) OR first IN (SELECT document FROM joined)
        """)
    ledger.note("documents with nearly the text of another", "FROM joined", "document || ' ~ ' || first")
    engine.run("UPDATE kept SET document = joined.first FROM joined WHERE kept.document = joined.document")
    engine.run("DROP TABLE suspects; DROP TABLE alike; DROP TABLE joined")


def shingles(text: str) -> list[str]:
    """The distinct runs of three words (or characters of a script without spaces), or the whole of a shorter text."""
    words = units(text)
    return sorted({" ".join(words[at : at + WORDS]) for at in range(max(min(1, len(words)), len(words) - WORDS + 1))})


def bands(near: float) -> Callable[[pa.Array], pa.Array]:
    """The numbers of the buckets of texts; texts that resemble each other by ``near`` share one of them most likely.

    A text without words is in none.
    """
    lsh = MinHashLSH(threshold=min(near, STRICTEST), num_perm=PERMUTATIONS, weights=(1 - MISSED, MISSED))

    def of(texts: pa.Array) -> pa.Array:
        sets = [[each.encode("utf-8", "surrogatepass") for each in shingles(text)] for text in texts.to_pylist()]
        hashes = MinHash.generator(sets, num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        buckets = (
            _buckets(each.hashvalues, lsh.b, lsh.r) if own else [] for own, each in zip(sets, hashes, strict=True)
        )
        return pa.array(buckets, type=pa.list_(pa.uint64()))

    return of


def _buckets(values: np.ndarray, count: int, width: int) -> list[int]:  # type: ignore[type-arg]
    """A hash of each band and its place; two bands of one hash would only be compared in vain."""
    parts = (bytes([band]) + values[band * width : (band + 1) * width].tobytes() for band in range(count))
    return [int.from_bytes(blake2b(part, digest_size=8).digest(), "little") for part in parts]
