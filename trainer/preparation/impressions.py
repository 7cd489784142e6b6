"""Impressions, of which some are dropped by themselves or with their session, and the rest are counted."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.data.records import DataError
from trainer.preparation.clicks import ClickArguments
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Entry, Ledger
from trainer.preparation.sessions import COPIES, SessionArguments, drop_sessions
from trainer.preparation.splits import SplitArguments

UNTIMED = "without a time"
FIRST = [UNTIMED, COPIES]  # rules, before those of sessions in the order of the alphabet


def count_impressions(
    engine: Engine, ledger: Ledger, sessions: SessionArguments, clicks: ClickArguments, splits: SplitArguments
) -> None:
    """Replace the rows of ``impressions`` by counts, after which no step asks for one of them.

    There is a row for each raw query, document, position and era: ``n`` impressions, of which so many have ``clicks``
    and a ``satisfied`` one, and the first ``place`` of a file. Impressions without a time, which ``--split time`` can
    put nowhere, are dropped before, and so are sessions that cannot be.
    """
    if splits.split == "time":
        ledger.drop(UNTIMED, "time IS NULL")
    drop_sessions(engine, ledger, sessions)
    engine.run(f"""
        CREATE TABLE counted AS SELECT raw, document, position, {splits.era} AS era, count(*) AS n,
            sum(least(click, 1))::BIGINT AS clicks,
            (sum(least(click, 1)) FILTER ({clicks.satisfied}))::BIGINT AS satisfied, min(place) AS place
        FROM impressions GROUP BY ALL
    """)
    engine.run("DROP TABLE impressions; ALTER TABLE counted RENAME TO impressions")


def drops_of(parts: Iterable[Entry]) -> list[Entry]:
    """The drops of a log, out of those of its parts by ``count_impressions``."""
    joined = dict[str, Entry]()
    for entry in parts:
        before = joined.get(entry.rule, Entry(entry.rule, 0, entry.example))
        joined[entry.rule] = Entry(entry.rule, before.count + entry.count, min(before.example, entry.example))
    return [joined[rule] for rule in (*FIRST, *sorted(joined.keys() - {*FIRST})) if rule in joined]


def refuse_untimed(engine: Engine, ledger: Ledger, splits: SplitArguments) -> None:
    """Raises DataError for ``--split time`` where no impression has a time."""
    others = {entry.rule for entry in ledger.dropped} - {UNTIMED}
    if splits.split == "time" and not others and not engine.number("SELECT count(*) FROM impressions"):
        raise DataError("--split time: the log has no times")
