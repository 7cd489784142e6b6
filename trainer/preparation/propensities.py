"""How often the places of a page are looked at, out of the clicks of a log.

The position-based model has a click's chance as theta[position] * alpha[query, document]. Both are those that make the
counted clicks most likely as Poisson counts, found in turns. The mean is all that this asks of the counts, so it holds
for pairs that were shown a few times only, where alternating over single clicks (EM) runs into the limits of alpha.
Sources: Richardson et al. 2007 (the model); Wang et al. 2018, "Position Bias Estimation for Unbiased Learning to Rank
in Personal Search" (its estimate from logs without experiments).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from client.inputs import text_of
from trainer.data.rows import DataError, parsed_lines
from trainer.preparation.engine import Engine

CELLS = 2_000_000  # pairs at positions, at most, in memory
ROUNDS, TOLERANCE = 5000, 1e-7
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def estimate(pair: Places, position: Places, shown: Floats, clicks: Floats) -> dict[int, float]:
    """theta by position, relative to the first one, from cells of a pair at a position: how often shown and clicked.

    Only pairs with a click that were shown at several positions count. Positions that they do not compare with the
    first one are left out, such as those without a click. Raises DataError where nothing is left to compare.
    """
    several = np.bincount(pair) > 1
    chosen = several[pair] & (np.bincount(pair, clicks)[pair] > 0)
    if not chosen.any():
        raise DataError("no clicked document was shown at several positions of its query: give --position_bias a file")
    chosen[chosen] = _comparable(pair[chosen], position[chosen], clicks[chosen])
    if len(np.unique(position[chosen])) < 2:
        raise DataError("no clicks compare the first position with another one: give --position_bias a file")
    pair = np.unique(pair[chosen], return_inverse=True)[1]
    positions, place = np.unique(position[chosen], return_inverse=True)
    shown, clicks = shown[chosen], clicks[chosen]
    of_pair, of_place = np.bincount(pair, clicks), np.bincount(place, clicks)
    theta = np.ones(len(positions))
    for _ in range(ROUNDS):
        alpha = of_pair / np.bincount(pair, shown * theta[place])
        new = of_place / np.bincount(place, shown * alpha[pair])
        new /= new[0]
        if np.abs(new - theta).max() < TOLERANCE:
            break
        theta = new
    return dict(zip(positions.tolist(), new.tolist(), strict=True))


def _comparable(pair: Places, position: Places, clicks: Floats) -> npt.NDArray[np.bool_]:
    """Whether each cell is in the part around the first position in which counts have one most likely theta and alpha.

    These are the strong components of pairs and positions as nodes, where each cell leads from its pair to its position
    and a clicked one back, too. Between them theta would run to 0 or could be anything.
    """
    pair = np.unique(pair, return_inverse=True)[1]
    node = pair.max() + 1 + np.unique(position, return_inverse=True)[1]
    clicked = clicks > 0
    ends = np.concatenate([pair, node[clicked]]), np.concatenate([node, pair[clicked]])
    nodes = node.max() + 1
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    component = connected_components(graph, connection="strong")[1]
    first = component[node.min()]
    inside: npt.NDArray[np.bool_] = (component[pair] == first) & (component[node] == first)
    return inside


def from_log(engine: Engine) -> dict[int, float]:
    """The estimate over ``cells``, or over pairs drawn by their ids where there are too many."""
    share = CELLS / max(1, engine.number("SELECT count(*) FROM cells"))
    of_pair = "(('0x' || md5(query_id || ' ' || document)[1:8])::UBIGINT) / 4294967296"
    rows = engine.arrow(f"""
        SELECT dense_rank() OVER (ORDER BY query_id, document) - 1 AS pair, position, shown, clicks FROM cells
        WHERE {of_pair} < {share} ORDER BY ALL
    """)
    columns = [rows[name].to_numpy() for name in ("pair", "position", "shown", "clicks")]
    return estimate(*(column.astype(np.int64) for column in columns[:2]), *(each.astype(float) for each in columns[2:]))


def filled(known: Mapping[int, float], last: int) -> dict[int, float]:
    """A value for each position from 1 to ``last``; where nothing is known, that of the nearest position above it."""
    values, value = dict[int, float](), next(iter(known.values()))
    for position in range(1, last + 1):
        value = known.get(position, value)
        values[position] = value
    return values


def read_propensities(path: str) -> dict[int, float]:
    """The shares of a file whose lines have a position and how often it is looked at.

    Raises DataError for other lines, positions that come twice, and shares that are not above 0.
    """
    found = dict[int, float]()
    for where, line in parsed_lines(Path(path), text_of):
        position, share = _line(where, line)
        if position in found:
            raise DataError(f"{where}: position {position} again")
        found[position] = share
    if not found:
        raise DataError(f"{path}: no positions in this file")
    return dict(sorted(found.items()))


def _line(where: str, line: str) -> tuple[int, float]:
    try:
        position, share = line.split()
        if int(position) < 1 or not 0 < float(share) < float("inf"):
            raise ValueError
        return int(position), float(share)
    except ValueError:
        raise DataError(f"{where}: {line.strip()!r:.80} is not a position from 1 on and a share above 0") from None
