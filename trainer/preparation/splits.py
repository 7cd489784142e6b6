"""Queries into train, dev and test: each stays in its split when data come, and no near copy of it is in another."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from trainer.data.records import DataError
from trainer.data.resemblance import RESEMBLANCE, trigrams
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger
from trainer.preparation.queries import by_element

LONG = 100  # trigrams; the threes of a longer query are too many, since they grow with the cube of its length


@dataclass(kw_only=True)
class SplitArguments:
    """How queries are split."""

    split: Literal["hash", "time"] = field(
        default="hash",
        metadata={"help": "By the query's text, the same when data are added later; or by when it was first asked."},
    )
    dev_share: float = field(default=0.05, metadata={"help": "Share of the queries in dev."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the queries in test."})
    dev_from: str | None = field(
        default=None, metadata={"help": "With --split time, the date from which queries are dev."}
    )
    test_from: str | None = field(
        default=None, metadata={"help": "With --split time, the date from which queries are test."}
    )

    def __post_init__(self) -> None:
        if not (min(self.dev_share, self.test_share) >= 0 and self.dev_share + self.test_share < 1):
            raise DataError("--dev_share and --test_share must be at least 0, and below 1 together")
        if (self.split == "time") != (self.dev_from is not None and self.test_from is not None):
            raise DataError("--split time, --dev_from and --test_from need each other")
        if self.split == "time" and self.begins("test") <= self.begins("dev"):
            raise DataError(f"--test_from {self.test_from} must come after --dev_from {self.dev_from}")

    def begins(self, split: Literal["dev", "test"]) -> float:
        """Seconds since 1970. Raises DataError for what is no date."""
        given = str(self.dev_from if split == "dev" else self.test_from)
        try:
            date = datetime.fromisoformat(given)
        except ValueError:
            raise DataError(
                f"--{split}_from {given!r} is no date, such as 2026-11-30 or 2026-11-30T12:00+01:00"
            ) from None
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()

    @property
    def era(self) -> str:
        """SQL for whose time an impression is of: 0 train's, 1 dev's, 2 test's; 0 where times split nothing."""
        if self.split == "hash":
            return "0"
        return f"CASE WHEN time >= {self.begins('test')!r} THEN 2 WHEN time >= {self.begins('dev')!r} THEN 1 ELSE 0 END"


def split_queries(engine: Engine, ledger: Ledger, arguments: SplitArguments) -> None:
    """Make ``splits`` (query_id, split). Drop what training would know of queries that are held out.

    The files of judgments go before, if they are splits. With ``--split time`` what was shown for a query after its own
    time is dropped; judged queries that are in no log go by their text.
    """
    engine.run("""
        CREATE VIEW judged AS SELECT coalesce(ids.query_id, forms.query_id) AS query_id, document, label, split
        FROM judgments LEFT JOIN ids ON ids.given = judgments.query_id LEFT JOIN forms ON forms.raw = judgments.raw
    """)
    share = "(('0x' || md5('split ' || key)[1:12])::UBIGINT) / 281474976710656"
    engine.run(f"""
        CREATE TABLE splits AS SELECT query_id, coalesce(given, by_time, CASE WHEN {share} < {arguments.test_share}
            THEN 'test' WHEN {share} < {arguments.test_share + arguments.dev_share} THEN 'dev' ELSE 'train' END)
            AS split
        FROM queries LEFT JOIN (
            SELECT query_id, CASE max({_order("split")}) WHEN 2 THEN 'test' WHEN 1 THEN 'dev' WHEN 0 THEN 'train' END
            AS given FROM judged GROUP BY query_id) USING (query_id)
        LEFT JOIN ({_by_time(arguments)}) USING (query_id)
    """)
    ledger.note("judgments of a query that is held out elsewhere",
                "FROM judged JOIN splits USING (query_id) WHERE judged.split <> splits.split", "query_id")  # fmt: skip
    if arguments.split == "time":
        for era, split in enumerate(("train", "dev")):
            asked = f"SELECT raw FROM forms JOIN splits USING (query_id) WHERE split = '{split}'"
            ledger.drop("of a query after the time of its split", f"era > {era} AND raw IN ({asked})")
    _drop_near(engine, ledger)


def _order(split: str) -> str:
    return f"CASE {split} WHEN 'test' THEN 2 WHEN 'dev' THEN 1 WHEN 'train' THEN 0 END"


def _by_time(arguments: SplitArguments) -> str:
    if arguments.split == "hash":
        return "SELECT NULL AS query_id, NULL AS by_time WHERE false"
    return """
        SELECT query_id, ['train', 'dev', 'test'][min(era) + 1] AS by_time
        FROM impressions JOIN forms USING (raw) GROUP BY query_id
    """


def _drop_near(engine: Engine, ledger: Ledger) -> None:
    """Drop queries that nearly are held-out ones: of training those that resemble dev or test, of dev those of test."""
    engine.add("trigrams", by_element(lambda query: sorted(trigrams(query)), pa.list_(pa.string())), "VARCHAR[]")
    engine.run(
        "CREATE TABLE grams AS SELECT query_id, split, trigrams(key) AS own FROM queries JOIN splits USING (query_id)"
    )
    engine.run(near_queries("grams"))
    pairs = "FROM near JOIN queries a USING (query_id) JOIN queries b ON b.query_id = other"
    ledger.note("queries that nearly are held-out ones, left out", pairs, "a.query || ' ~ ' || b.query")
    ledger.drop("of a query that nearly is a held-out one", "raw IN (SELECT raw FROM forms JOIN near USING (query_id))")
    engine.run("DELETE FROM splits WHERE query_id IN (SELECT query_id FROM near)")


def near_queries(table: str) -> str:
    """SQL that makes ``near`` (query_id, other) out of query_id, split and the sorted trigrams ``own``.

    Sets that resemble each other share three of the rarest trigrams of either, which are three more than the other set
    may lack (all, of fewer than three), and their sizes are alike. Any one of these is in more queries the more there
    are, which three together are not. Of sets above ``LONG``, and of those that may resemble them, it is one trigram.
    """
    after = "grams[list_position(grams, {}) + 1:]"
    threes = f"[[[hash(a, b, c) for c in {after.format('b')}] for b in {after.format('a')}] for a in grams]"
    return f"""
        CREATE TABLE near AS WITH
        single AS (SELECT query_id, split, len(own) AS size, unnest(own) AS gram FROM {table}),
        counts AS (SELECT gram, count(*) AS n FROM single GROUP BY gram),
        ranked AS (SELECT *, row_number() OVER (PARTITION BY query_id ORDER BY n, gram) AS place
            FROM single JOIN counts USING (gram)),
        rare AS (SELECT query_id, {_order("split")} AS held, size, list(gram ORDER BY place) AS grams FROM ranked
            WHERE place <= size - ceil({RESEMBLANCE} * size)::BIGINT + 3 GROUP BY ALL),
        keyed AS (SELECT query_id, held, size,
            unnest(CASE WHEN size < 3 THEN [hash(grams)] ELSE flatten(flatten({threes})) END) AS key
            FROM rare WHERE size <= {LONG}
            UNION ALL SELECT query_id, held, size, hash(unnest(grams[:len(grams) - 2])) FROM rare
            WHERE size >= {RESEMBLANCE} * {LONG}),
        suspects AS (SELECT DISTINCT a.query_id, b.query_id AS other FROM keyed a
            JOIN keyed b ON a.key = b.key AND a.held < b.held
            WHERE least(a.size, b.size) >= {RESEMBLANCE} * greatest(a.size, b.size)),
        compared AS (
            SELECT suspects.*, len(list_intersect(a.own, b.own)) AS common, len(a.own) + len(b.own) AS sizes
            FROM suspects JOIN {table} a ON a.query_id = suspects.query_id JOIN {table} b ON b.query_id = other)
        SELECT query_id, min(other) AS other FROM compared
        WHERE common >= {RESEMBLANCE} * (sizes - common) GROUP BY query_id
    """
