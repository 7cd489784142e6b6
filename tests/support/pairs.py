"""Flat pairs whose tokens say which pair they are of, and where in it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from model_repository.student.runtime.packing import FlatPairs

ROW_LENGTH = 64
LENGTHS = st.lists(st.integers(1, ROW_LENGTH), min_size=1, max_size=40)


def pairs_of(lengths: list[int]) -> FlatPairs:
    """Pairs whose tokens name their pair: 100 * pair + place."""
    token_ids = np.concatenate([100 * pair + np.arange(length) for pair, length in enumerate(lengths)])
    sizes = np.array(lengths, dtype=np.int64)
    return FlatPairs(token_ids.astype(np.int32), sizes, sizes // 2, np.zeros(len(lengths), np.bool_))
