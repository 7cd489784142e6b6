"""How a batch waits for servers that are away or have too much to do, beyond the attempts of a call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from client.errors import Fault, RankingError, ServerError, ServerOverloadedError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 4.0
BREAKS = 3  # of servers by one request: it may be what breaks them
T = TypeVar("T")


def patiently(call: Callable[[float], T], timeout_s: float, faults: tuple[Fault, ...]) -> T:
    """The result of ``call(seconds left)``, which is made again after these faults until ``timeout_s`` is over.

    The pauses grow, and are at least what an overloaded server asked for. Raises the last RankingError.
    """
    ends, pause_s, breaks = time.monotonic() + timeout_s, FIRST_PAUSE_S, 0
    while True:
        try:
            return call(ends - time.monotonic())
        except RankingError as error:
            breaks += type(error) is ServerError
            pause_s = min(pause_s, LONGEST_PAUSE_S)
            wait_s = pause_s * random.uniform(0.5, 1.0)
            if isinstance(error, ServerOverloadedError):
                wait_s += min(error.retry_after_s, LONGEST_PAUSE_S)
            if error.fault not in faults or breaks > BREAKS or time.monotonic() + wait_s >= ends:
                raise
        time.sleep(wait_s)
        pause_s *= 2
