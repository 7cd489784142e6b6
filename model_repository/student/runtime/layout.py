"""The pairs of a call in the rows that cost least.

A graph that takes rows of any length gets rows as short as the pairs allow. Mostly that is one pair a row, since the
pairs of a call are of like length; where lengths differ, short pairs share a row:

    aaaaa          aaaaaaaaaaaa
    bbbbb          bbbbcccc....
    cccc.          dd..........
"""

from __future__ import annotations

from .packing import Fit, FlatPairs, Layout, PackedBatch, first_fit

COARSE_STEP = 32  # between the row lengths that are tried
# A token's part in attention grows with its row: in rows of this length it costs what all else does (MiniLM-L6).
COSTLY_LENGTH = 1200


def lay_out(pairs: FlatPairs, layout: Layout, step: int) -> PackedBatch:
    """Rows of at most ``layout.row_length`` tokens, with as many slots as are needed.

    Tried are the length of the longest pair, rounded up to a multiple of ``step``, and longer ones, COARSE_STEP apart.
    """
    shortest = min(-(-int(pairs.lengths.max()) // step) * step, layout.row_length)
    lengths = [*range(shortest, layout.row_length, COARSE_STEP), layout.row_length]
    tried = [(first_fit(pairs.lengths, length, len(pairs)), length) for length in lengths]
    fit, length = min(tried, key=lambda choice: _cost(*choice))
    return layout._replace(row_length=length, slots_per_row=int(fit.places.max()) + 1).filled(pairs, fit)


def _cost(fit: Fit, length: int) -> float:
    return float((1 + fit.rows.max()) * length * (1 + length / COSTLY_LENGTH))
