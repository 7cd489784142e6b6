"""Waiting for what comes sooner or later on a machine that has other work."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 180.0


def eventually(holds: Callable[[], object]) -> None:
    """Return once ``holds()`` is true; fail when the patience is over."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, f"not within {PATIENCE_S:.0f} s"
        time.sleep(0.03)
