"""Drops rows given twice, robots and sessions that cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainer.data.records import DataError
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger

COPIES = "rows that came before"


@dataclass(kw_only=True)
class SessionArguments:
    """Limits of a session; what is above one is no person's."""

    max_session_queries: int = field(default=100, metadata={"help": "Different queries of a session."})
    max_session_clicks: int = field(default=200, metadata={"help": "Clicks of a session."})
    max_session_hours: float = field(default=24.0, metadata={"help": "Hours from its first row to its last."})

    def __post_init__(self) -> None:
        if min(self.max_session_queries, self.max_session_clicks) < 1 or not 0 < self.max_session_hours < math.inf:
            raise DataError(
                "--max_session_queries, --max_session_clicks and --max_session_hours must be above 0, no inf"
            )


def drop_sessions(engine: Engine, ledger: Ledger, arguments: SessionArguments) -> None:
    """Drop rows that came before, and all rows of a session that a rule is against."""
    # A window over all rows would take far more memory than one over those whose hash is there twice.
    engine.run("""
        CREATE TABLE hashes AS SELECT hash(session, time, raw, document, position) AS hash, rowid AS id
        FROM impressions WHERE session IS NOT NULL AND time IS NOT NULL;
        CREATE TABLE copies AS SELECT id FROM (
            SELECT rowid AS id, row_number() OVER (PARTITION BY session, time, raw, document, position
                ORDER BY click DESC, dwell DESC, click_time, file, line) AS copy
            FROM impressions WHERE rowid IN (SELECT id FROM hashes
                SEMI JOIN (SELECT hash FROM hashes GROUP BY hash HAVING count(*) > 1) USING (hash)))
        WHERE copy > 1;
        DROP TABLE hashes
    """)
    ledger.drop(COPIES, "rowid IN (FROM copies)")
    engine.run(f"""
        CREATE TABLE sessions AS SELECT session, CASE
            WHEN bool_or(click_time < time) THEN 'sessions with a click before its page'
            WHEN sum(click) > count(*) THEN 'sessions with more clicks than impressions'
            WHEN max(time) - min(time) > {arguments.max_session_hours} * 3600
                THEN 'sessions of more than {arguments.max_session_hours:g} hours'
            WHEN count(DISTINCT raw) > {arguments.max_session_queries}
                THEN 'robots: more than {arguments.max_session_queries:,} queries'
            WHEN sum(click) > {arguments.max_session_clicks}
                THEN 'robots: more than {arguments.max_session_clicks:,} clicks'
            END AS rule FROM impressions WHERE session IS NOT NULL GROUP BY session
    """)
    for (rule,) in engine.run("SELECT DISTINCT rule FROM sessions WHERE rule IS NOT NULL ORDER BY rule"):
        ledger.drop(rule, f"session IN (SELECT session FROM sessions WHERE rule = '{rule}')", "session")
    engine.run("DROP TABLE sessions; DROP TABLE copies")
