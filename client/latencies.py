"""How long requests took of late, by their size."""

from __future__ import annotations

import threading
from collections import defaultdict, deque

RECENT, ENOUGH = 200, 20  # requests of a size that are remembered, and from how many on a quantile is told


class Latencies:
    """Seconds of recent requests. Sizes are alike up to a factor of two. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))

    def add(self, documents: int, seconds: float) -> None:
        with self._lock:
            self._recent[documents.bit_length()].append(seconds)

    def quantile(self, documents: int, share: float) -> float | None:
        """The time in which this share of such requests was answered; None as long as too few were seen."""
        with self._lock:
            recent = sorted(self._recent[documents.bit_length()])
        return recent[int(share * len(recent))] if len(recent) >= ENOUGH else None
