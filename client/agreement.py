"""How far two rankings of the same documents agree."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def kendall_tau(left_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.float32]) -> float:
    """Tau-b of two lists of scores (Kendall, 1945): 1 for the same order, -1 for the reverse.

    Pairs that are tied on a side have no order there, nor has a score that is not a number. NaN where a side has no
    order at all.
    """
    concordant = ties_left = ties_right = 0
    for index in range(1, len(left_N)):
        left, right = (
            np.greater(scores[:index], scores[index]).astype(int) - np.less(scores[:index], scores[index])
            for scores in (left_N, right_N)
        )
        concordant += int((left * right).sum())
        ties_left += int((left == 0).sum())
        ties_right += int((right == 0).sum())
    pairs = len(left_N) * (len(left_N) - 1) // 2
    ordered = math.sqrt((pairs - ties_left) * (pairs - ties_right))
    return concordant / ordered if ordered else math.nan
