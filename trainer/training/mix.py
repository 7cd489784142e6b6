"""Sets of queries mixed by weight: which queries an epoch has.

An epoch has as many queries as the sets have together, and each set's part of them is its share of the weights. A set
goes on in each epoch where it was at the end of the one before, and begins anew when it is through. So all of its
queries come equally often, whatever its size, and only the seed and the epoch decide which come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trainer.data.records import DataError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Mix:
    """The number of queries of each set, and how many of them an epoch has; the sums of both are equal."""

    sizes: Sequence[int]
    parts: Sequence[int]
    seed: int

    def places(self, epoch: int) -> npt.NDArray[np.int64]:
        """Where the epoch's queries are, if all sets lie in memory one behind the other."""
        chosen, begin = list[npt.NDArray[np.int64]](), 0
        for number, (size, part) in enumerate(zip(self.sizes, self.parts, strict=True)):
            first, last = epoch * part, (epoch + 1) * part
            passes = range(first // size, -(-last // size))  # a new order each time that the set begins anew
            orders = [np.random.default_rng((self.seed, number, each)).permutation(size) for each in passes]
            chosen.append(begin + np.concatenate(orders)[first % size :][:part])
            begin += size
        return np.random.default_rng((self.seed, epoch)).permutation(np.concatenate(chosen))

    def stream(self, read: Sequence[Callable[[], Iterator[Item]]], epoch: int) -> Iterator[Item]:
        """The epoch's queries, in an order that is drawn; ``read`` begins to read a set."""
        first = [epoch * part for part in self.parts]
        sets = [_again_and_again(*each) for each in zip(read, self.sizes, first, strict=True)]
        draw, left = np.random.default_rng((self.seed, epoch)), np.array(self.parts)
        while left.any():
            chosen = int(np.searchsorted(left.cumsum(), draw.integers(left.sum()), side="right"))
            left[chosen] -= 1
            yield next(sets[chosen])


def mix_of(weights: Sequence[float], names: Sequence[str], sizes: Sequence[int], seed: int) -> Mix:
    """Raises DataError for a set without queries, or with so small a weight that an epoch has none of them."""
    ideal = np.array(weights) / math.fsum(weights) * sum(sizes)
    parts = np.floor(ideal).astype(int)
    parts[np.argsort(parts - ideal, kind="stable")[: sum(sizes) - parts.sum()]] += 1  # by the largest remainders
    for name, size, part in zip(names, sizes, parts.tolist(), strict=True):
        if not size or not part:
            raise DataError(f"{name}: {size:,} queries to train on, of which --mix leaves {part:,} in an epoch")
    return Mix(sizes, parts.tolist(), seed)


def _again_and_again(read: Callable[[], Iterator[Item]], size: int, first: int) -> Iterator[Item]:
    yield from islice(read(), first % size, None)
    while True:
        query = None
        for query in read():
            yield query
        if query is None:
            raise DataError("a set of --mix has lost all of its queries since the training began")
