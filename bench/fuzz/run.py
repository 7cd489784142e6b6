"""Drawn cases, sent to a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy
from tqdm import tqdm

from bench.fuzz import cases
from bench.fuzz.target import Target

SURFACES = {"grpc": 0.6, "http": 0.1, "gateway": 0.15, "layout": 0.15}  # and their shares of the cases
EVERY = 100  # cases between two looks at the processes, which cost more than a case


def fuzz(target: Target, surface: str, count: int, seed: int) -> None:
    """Send ``count`` cases to a surface. Raises AssertionError for the smallest case that shows a fault."""
    ways: dict[str, tuple[SearchStrategy[Any], Callable[[Any], None]]] = {
        "grpc": (cases.requests(), target.infer),
        "http": (cases.infer_bodies(), target.infer_json),
        "gateway": (cases.rerank_bodies(), target.rerank),
        "layout": (cases.documents, target.encode),
    }
    drawn, send = ways[surface]
    sent = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @hypothesis.given(drawn)
    def each(case: Any) -> None:
        nonlocal sent
        send(case)
        sent += 1
        if sent % EVERY == 0:
            bar.update(EVERY)
            target.check_alive()

    with tqdm(total=count, desc=surface, unit="case", delay=5) as bar:
        each()
    target.check_alive()
