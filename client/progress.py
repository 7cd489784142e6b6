"""The progress of a batch on standard error: a bar where tqdm is installed, otherwise a line every ten seconds."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from client.command import say

EVERY_S = 10.0


class Progress:
    """Counts queries up to ``total`` (None if unknown); ``done`` of them were ranked by an earlier start."""

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._before, self._done = total, done, done
        self._bar: Any = None
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit=" queries", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif (now := time.monotonic()) - self._told >= EVERY_S:
            self._told = now
            rate = (self._done - self._before) / (now - self._started)
            of = "" if self._total is None else f" of {self._total}"
            say(f"{self._done}{of} queries, {rate:.1f} queries/s")
