"""Weights of pairs out of clicked impressions: satisfied ones count, corrected for the position of the click."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainer.data.records import DataError
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger
from trainer.preparation.propensities import filled, from_log, read_propensities

ESTIMATED, NONE = "estimated", "none"


@dataclass(kw_only=True)
class ClickArguments:
    """The weight of a click."""

    min_dwell_s: float = field(
        default=0.0,
        metadata={"help": "Seconds on the document that make a click count; one of unknown length counts."},
    )
    position_bias: str = field(
        default=NONE,
        metadata={
            "help": "none: a click is 1. estimated: 1 over how often its position is looked at, by a position-based "
            "click model of this log. Or a file of that: a position and a share a line."
        },
    )
    max_click_weight: float = field(default=10.0, metadata={"help": "The most that one click is corrected to."})
    known: dict[int, float] = field(init=False, default_factory=dict)  # the shares of a file

    def __post_init__(self) -> None:
        if not 0 <= self.min_dwell_s < math.inf:
            raise DataError(f"--min_dwell_s must be at least 0, not {self.min_dwell_s:g}")
        if not 1 <= self.max_click_weight < math.inf:
            raise DataError(f"--max_click_weight must be at least 1, not {self.max_click_weight:g}")
        if self.position_bias not in (ESTIMATED, NONE):
            self.known = read_propensities(self.position_bias)

    @property
    def satisfied(self) -> str:
        """SQL for whether the click of an impression counts."""
        return f"dwell IS NULL OR dwell >= {self.min_dwell_s}"


@dataclass(frozen=True)
class Correction:
    """The propensities by which clicks were divided, and the clicks that --max_click_weight clipped."""

    propensities: dict[int, float]  # how often a position is looked at; empty without a correction
    clipped: int = 0  # clicks
    lost: float = 0.0  # share of the weight of all clicks


def weigh(engine: Engine, ledger: Ledger, arguments: ClickArguments) -> Correction:
    """Make ``cells``, of a pair at a position, and ``pairs``: query_id, document, shown, clicks and weight.

    Raises DataError for a correction of a log without positions.
    """
    engine.run("""
        CREATE TABLE cells AS SELECT query_id, kept.document, position, sum(n)::BIGINT AS shown,
            sum(clicks)::BIGINT AS clicks, sum(satisfied) AS satisfied
        FROM impressions JOIN forms USING (raw) JOIN kept ON kept.alias = impressions.document GROUP BY ALL
    """)
    propensities = _propensities(engine, ledger, arguments)
    weights = {place: min(1 / share, arguments.max_click_weight) for place, share in propensities.items()}
    engine.run("CREATE TABLE propensities (position INTEGER, share DOUBLE, weight DOUBLE)")
    for place, weight in weights.items():
        engine.run(f"INSERT INTO propensities VALUES ({place}, {propensities[place]!r}, {weight!r})")
    engine.run("""
        CREATE TABLE pairs AS SELECT query_id, document, sum(shown)::BIGINT AS shown, sum(satisfied)::BIGINT AS clicks,
            round(sum(satisfied * coalesce(weight, 1) ORDER BY position), 4) AS weight, min(position) AS place
        FROM cells LEFT JOIN propensities USING (position) GROUP BY query_id, document
    """)
    # The sums of fractions are over positions in their order, so that they are the same to the last digit.
    ((clipped, lost),) = engine.run("""
        SELECT coalesce(sum(satisfied) FILTER (1 / share > weight), 0),
            coalesce(sum(satisfied * (1 / share - weight) ORDER BY position) FILTER (1 / share > weight), 0) /
            greatest(1, sum(satisfied / share ORDER BY position))
        FROM (SELECT position, sum(satisfied) AS satisfied FROM cells GROUP BY position)
        JOIN propensities USING (position)
    """)
    return Correction(propensities, int(clipped), float(lost or 0))


def _propensities(engine: Engine, ledger: Ledger, arguments: ClickArguments) -> dict[int, float]:
    if arguments.position_bias == NONE:
        return {}
    last = engine.number("SELECT max(position) FROM cells")
    if not last:
        raise DataError(f"--position_bias {arguments.position_bias}: the log has no positions")
    known = arguments.known or from_log(engine)
    others = f"FROM (SELECT DISTINCT position FROM cells WHERE position NOT IN ({', '.join(map(str, known))}))"
    ledger.note("positions without a propensity, which have that of one above", others, "position")
    return filled(known, last)
