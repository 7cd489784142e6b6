"""When requests are sent, decided before the first one is: whatever the server does, it changes nothing here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

KINDS = ("poisson", "constant")


def arrivals(kind: str, rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the beginning, ascending, below ``seconds`` (which may be infinite).

    ``poisson``: independent callers, with exponential gaps of mean ``1 / rate``; the seed decides which.
    ``constant``: a request every ``1 / rate`` seconds, the first one at 0.
    """
    if kind not in KINDS or not rate > 0:
        raise ValueError(f"{kind} arrivals at {rate} a second")
    times = _poisson(rate, seed) if kind == "poisson" else (number / rate for number in itertools.count())
    return itertools.takewhile(lambda due: due < seconds, times)


def _poisson(rate: float, seed: int) -> Iterator[float]:
    randomness, due = random.Random(seed), 0.0
    while True:
        due += randomness.expovariate(rate)
        yield due
