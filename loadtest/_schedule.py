"""When requests of an open loop are due.

It needs the standard library only: the benches' workers import it where nothing of ours is installed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

ARRIVALS = ("poisson", "constant")


def arrivals(kind: str, rate: float, seconds: float, seed: int) -> Iterator[float]:
    """The times at which requests are due, in seconds from the beginning, below ``seconds`` (which may be infinite).

    They are decided before the first request, whatever the server does. ``poisson`` stands for independent callers,
    with gaps that are exponential, have the mean ``1 / rate`` and depend on the seed. ``constant`` is a request every
    ``1 / rate`` seconds, the first one at 0.
    """
    if kind not in ARRIVALS or not rate > 0:
        raise ValueError(f"{kind} arrivals at {rate} a second")
    times = _poisson(rate, seed) if kind == "poisson" else (number / rate for number in itertools.count())
    return itertools.takewhile(lambda due: due < seconds, times)


def _poisson(rate: float, seed: int) -> Iterator[float]:
    randomness, due = random.Random(seed), 0.0
    while True:
        due += randomness.expovariate(rate)
        yield due
