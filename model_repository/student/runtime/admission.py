"""Whether a request can still be scored in time, by what waits for an engine and by how fast the engine is.

The student asks before a request joins its queue, and the tokenizer before it tokenises one (a link to this file lies
in its folder, because Triton shows a model its own folder only).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

PERSON, BATCH = 1, 2  # priorities: a person waits for the answer, or a job does
# So much of the time that a request can wait may be full when it comes. The rest is for what no estimate knows: an
# engine that slows down, and the way of the answer. With half, a fifth of what could be answered in time was refused.
CAUTION = 0.75
KEPT = 0.9  # of the measured past, at each call: the speed is that of the last ten calls or so
# A request overtakes those at the end of its priority that have LARGER times its tokens left. Others of like size keep
# their turn: with the fewest tokens first, one in twenty equal requests took seven times as long as the median. It also
# goes before all that have MUCH_LARGER times its tokens, whatever stands between. Otherwise a chain of requests, each a
# bit smaller than the one before, would hold up the smallest for the largest.
LARGER, MUCH_LARGER = 2.0, 4.0
LONGEST = 4.0  # times as long as expected: a call that stood still longer says nothing about the next one


class UnavailableError(Exception):
    """The request was not scored, through no fault of its own."""


class OverloadedError(UnavailableError):
    """Too much waits already; the request is to be sent again later, or elsewhere."""


class Urgency(NamedTuple):
    """How soon a request must be scored. The deadline is a time of time.monotonic in seconds, inf for none."""

    priority: int = PERSON
    deadline: float = math.inf


ANY_TIME = Urgency()


@dataclass(frozen=True)
class Waiting:
    """The work that an engine has before it is idle.

    speed: tokens a second, 0 as long as it has not been measured
    call_began: when the call that runs began, a time of time.monotonic; inf for none
    call_s: how long that call should take
    longest_s: how long a request without a deadline may have to wait
    requests: the tokens left, priority and deadline of each request that waits, in their turn
    """

    speed: float
    call_began: float
    call_s: float
    longest_s: float
    requests: list[tuple[float, float, float]]

    def numbers(self) -> Numbers:
        """All of it in one array, for ``of``."""
        return np.array([self.speed, self.call_began, self.call_s, self.longest_s, *chain(*self.requests)])

    @classmethod
    def of(cls, numbers: Numbers) -> Waiting:
        speed, call_began, call_s, longest_s, *rest = numbers.tolist()
        return cls(speed, call_began, call_s, longest_s, [*zip(rest[::3], rest[1::3], rest[2::3], strict=False)])

    @property
    def is_idle(self) -> bool:
        return not self.requests and math.isinf(self.call_began)

    def busy_s(self, now: float) -> float:
        """Seconds that the running call will take. One that is late is taken to be late for as long again."""
        return 0.0 if math.isinf(self.call_began) else abs(self.call_began + self.call_s - now)

    def wait_s(self, now: float) -> float:
        """Seconds until all is scored."""
        return self.busy_s(now) + (sum(left for left, _, _ in self.requests) / self.speed if self.speed else 0.0)

    def delay_s(self, tokens: float, urgency: Urgency, now: float) -> float:
        """Seconds by which a new request of so many tokens comes too early; 0 for one that may join.

        It must make its deadline, or wait ``longest_s`` at most where it has none, and so must those of its priority
        that it overtakes. An idle engine takes all, whatever it was measured to do: nothing else would
        ever show that it has become faster.
        """
        if self.is_idle or not self.speed:
            return 0.0
        own_s, place = tokens / self.speed, place_of(tokens, urgency.priority, self.requests)
        wait_s = self.busy_s(now) + sum(left for left, _, _ in self.requests[:place]) / self.speed
        most_s = self.longest_s if math.isinf(urgency.deadline) else CAUTION * (urgency.deadline - now - own_s)
        if wait_s > most_s:
            return wait_s - most_s
        overtaken = [(left, deadline) for left, level, deadline in self.requests[place:] if level == urgency.priority]
        return self._harm_s(overtaken, wait_s, own_s, now)

    def _harm_s(self, overtaken: Sequence[tuple[float, float]], wait_s: float, own_s: float, now: float) -> float:
        """Seconds until those are scored who would not make their deadlines if this one overtook them. Those who would
        not make them anyway do not count."""
        harm_s = 0.0
        for left, deadline in overtaken:
            left_s, time_s = left / self.speed, deadline - now
            if wait_s + left_s <= time_s and wait_s + own_s > CAUTION * (time_s - left_s):
                harm_s = wait_s + left_s
            wait_s += left_s
        return harm_s

    def refusal(self, delay_s: float, now: float) -> OverloadedError:
        """The error of a request that comes too early; clients read the wait out of its words."""
        words = f"work of {self.wait_s(now):.2f} s waits for the engine: retry in {max(delay_s, 0.01):.2f} s"
        return OverloadedError(words)


def place_of(tokens: float, priority: float, requests: Sequence[tuple[float, float, float]]) -> int:
    """The place of a new request of so many tokens among those that wait, which are as in Waiting.

    It is before the first that is as urgent and MUCH_LARGER times as large, and before those that this place or the
    queue's end comes after, as long as they are less urgent, or as urgent and LARGER times as large.
    """
    much_larger = (
        place for place, (left, level, _) in enumerate(requests) if level == priority and left >= MUCH_LARGER * tokens
    )
    place = next(much_larger, len(requests))
    while place:
        left, level, _ = requests[place - 1]
        if level < priority or (level == priority and left < LARGER * tokens):
            break
        place -= 1
    return place


class Speed:
    """The tokens a second of an engine, measured by its calls."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def tokens_per_s(self) -> float:
        """0 as long as no call was full."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def measure(self, tokens: int, seconds: float, full: bool) -> None:
        """Count a call. One that is not ``full`` has much of what every call costs for little, so it only counts if it
        was faster than expected."""
        if expected := self.tokens_per_s:
            seconds = min(seconds, LONGEST * tokens / expected)
        if full or (expected and tokens > expected * seconds):
            self._tokens = KEPT * self._tokens + tokens
            self._seconds = KEPT * self._seconds + seconds
