"""The documents that the teacher will score for each training query: shown, found and drawn ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from trainer.collection.bands import shared_out
from trainer.data.records import DataError
from trainer.measures.baselines import Bm25Index
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger

SOURCES = ("impressions", "run", "hard", "random")
JUDGED = "judged"
QUERIES_AT_ONCE = 2000


@dataclass(kw_only=True)
class PoolArguments:
    """The pool's candidates."""

    candidates: int = field(default=50, metadata={"help": "Documents of a query in the pool, beside judged ones."})
    shares: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 0.0, 0.0],
        metadata={
            "help": "Shares in them of documents that were shown, that a first-stage run found, hard ones (BM25's) and "
            "random ones."
        },
    )
    hard_skip: int = field(default=5, metadata={"help": "BM25's first documents that may be relevant, not taken."})
    hard_depth: int = field(default=200, metadata={"help": "Last rank of BM25 from which hard ones are drawn."})
    seed: int = field(default=0, metadata={"help": "Seed of what is drawn."})

    def __post_init__(self) -> None:
        if self.candidates < 0:
            raise DataError(f"--candidates must be at least 0, not {self.candidates}")
        if len(self.shares) != len(SOURCES) or not all(0 <= each < math.inf for each in self.shares):
            raise DataError(f"--shares are four numbers of at least 0 ({', '.join(SOURCES)})")
        if not any(self.shares):
            raise DataError("--shares are all 0: for no candidates but judged ones give --candidates 0")
        if not 0 <= self.hard_skip < self.hard_depth:
            raise DataError("--hard_depth must be above --hard_skip, which is at least 0")


def fill_pool(engine: Engine, ledger: Ledger, arguments: PoolArguments) -> None:
    """Make ``pool`` (query_id, document, source): judged documents, then those of each source in turn.

    A document is there once, from its first source. Where one has too few, the query has fewer. What is drawn for a
    query depends on the seed, its id and the documents, not on other queries.
    """
    engine.run("""
        CREATE TABLE pool (query_id VARCHAR, document VARCHAR, source VARCHAR);
        CREATE VIEW asked AS SELECT query_id, query FROM queries JOIN splits USING (query_id) WHERE split = 'train';
        CREATE VIEW positive AS SELECT query_id, document FROM labels WHERE label > 0
            UNION SELECT query_id, document FROM pairs WHERE clicks > 0;
    """)
    _take(engine, JUDGED, "SELECT query_id, document, -label FROM labels", 2**31)
    # A log or a run that is not there leaves its share to the others.
    given = [engine.number("SELECT count(*) FROM pairs"), engine.number("SELECT count(*) FROM run"), 1, 1]
    shares = [share if there else 0.0 for share, there in zip(arguments.shares, given, strict=True)]
    counts = shared_out(arguments.candidates, shares) if any(shares) else [0] * len(SOURCES)
    ranked = (_shown(), _found(engine, ledger), _hard(arguments), _random(engine, arguments, counts[3]))
    if counts[2]:
        _rank_by_bm25(engine, arguments)
    for source, candidates, count in zip(SOURCES, ranked, counts, strict=True):
        if count:
            _take(engine, source, candidates, count)


def _take(engine: Engine, source: str, candidates: str, count: int) -> None:
    """The first ``count`` of each query that are not there; ``candidates`` are query_id, document and an order."""
    engine.run(f"""
        INSERT INTO pool SELECT query_id, document, '{source}' FROM (
            SELECT query_id, document, row_number() OVER (PARTITION BY query_id ORDER BY least, document) AS place
            FROM (SELECT query_id, document, min(rank) AS least
                FROM ({candidates}) AS of_source(query_id, document, rank) GROUP BY query_id, document)
            SEMI JOIN asked USING (query_id) ANTI JOIN pool USING (query_id, document)
        ) WHERE place <= {count}
    """)


def _shown() -> str:
    return "SELECT query_id, document, -shown FROM pairs"


def _found(engine: Engine, ledger: Ledger) -> str:
    engine.run("""
        CREATE VIEW found AS
        SELECT coalesce(ids.query_id, forms.query_id) AS query_id, kept.document, rank, run.document AS id
        FROM run LEFT JOIN ids ON ids.given = run.query_id LEFT JOIN forms ON forms.raw = run.raw
        LEFT JOIN kept ON kept.alias = run.document
    """)
    ledger.note("rows of the run with an unknown query", "FROM found WHERE query_id IS NULL", "id")
    ledger.note("rows of the run with a document without a text", "FROM found WHERE document IS NULL", "id")
    return "SELECT query_id, document, rank FROM found WHERE document IS NOT NULL"


def _hard(arguments: PoolArguments) -> str:
    """SQL for BM25's documents in an order that is drawn, so that not only the first ranks are taken."""
    drawn = f"('0x' || md5({arguments.seed} || ' ' || query_id || ' ' || document)[1:12])::BIGINT"
    return f"SELECT query_id, document, {drawn} FROM near_by_words ANTI JOIN positive USING (query_id, document)"


def _random(engine: Engine, arguments: PoolArguments, count: int) -> str:
    """SQL for drawn documents, more than are needed, since some are there already."""
    documents = max(1, engine.number("SELECT count(*) FROM documents"))
    number = f"('0x' || md5({arguments.seed} || ' ' || query_id || ' ' || draw)[1:12])::BIGINT % {documents}"
    return f"""
        SELECT query_id, document, draw FROM (
            SELECT query_id, draw, {number} AS number FROM asked, range({2 * count + 10}) AS draws(draw)
        ) JOIN documents USING (number) ANTI JOIN positive USING (query_id, document)
    """


def _rank_by_bm25(engine: Engine, arguments: PoolArguments) -> None:
    """Make ``near_by_words``: each query's documents from behind ``hard_skip`` to ``hard_depth``.

    The collection's texts and their index are in memory.
    """
    texts = engine.arrow("SELECT title || ' ' || summary AS text FROM documents ORDER BY number")["text"].to_pylist()
    index = Bm25Index(texts)
    engine.run("CREATE TABLE ranked (query_id VARCHAR, number BIGINT)")
    ids = engine.arrow("SELECT query_id, query FROM asked ORDER BY query_id")
    for block in ids.to_batches(max_chunksize=QUERIES_AT_ONCE):
        rows = list(_ranks(index, block["query_id"].to_pylist(), block["query"].to_pylist(), arguments))
        engine.insert("ranked", pa.table({"query_id": [row[0] for row in rows], "number": [row[1] for row in rows]}))
    engine.run("CREATE VIEW near_by_words AS SELECT query_id, document FROM ranked JOIN documents USING (number)")


def _ranks(
    index: Bm25Index, query_ids: Sequence[str], queries: Sequence[str], arguments: PoolArguments
) -> Iterator[tuple[str, int]]:
    """Yields each query's id with the numbers of documents that share a word with it."""
    for query_id, query in zip(query_ids, queries, strict=True):
        scores_N = index.scores(query)
        order = np.argsort(-scores_N, kind="stable")[arguments.hard_skip : arguments.hard_depth]
        yield from ((query_id, int(number)) for number in order if scores_N[number] > 0)
