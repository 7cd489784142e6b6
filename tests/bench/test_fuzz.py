"""Requests that nobody meant to send, at the running server and gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.fuzz.run import SURFACES, fuzz
from bench.fuzz.target import INTERNALS, SECRET, Target
from tests.support.gateways import Gateway
from tests.support.servers import Reference, Server

CASES = 500  # `make chaos` sends 100,000


@pytest.fixture(scope="module")
def target(server: Server, gateway: Gateway, reference: Reference) -> Iterator[Target]:
    http = f"http://127.0.0.1:{server.ports['http']}"
    with Target(server.process.pid, server.url, http, gateway.url, reference.encoder, tolerance=1e-5) as target:
        yield target


@pytest.mark.parametrize("surface", SURFACES)
def test_nothing_dies_leaks_or_changes_another_answer(target: Target, server: Server, surface: str) -> None:
    fuzz(target, surface, round(CASES * SURFACES[surface]), seed=0)
    assert SECRET not in server.log.read_text()


@pytest.mark.parametrize(
    ("words", "internal"),
    [
        ("IndexError: index 6\n\nAt:\n  model.py(16): execute", True),
        ("no plan in /models/student/1", True),
        ("Traceback (most recent call last)", True),
        ("Request for unknown model: 'scores' version 9 is not found", False),
        ("see https://example.org/docs/page, or POST /v2/models", False),
    ],
)
def test_what_counts_as_internal(words: str, internal: bool) -> None:
    assert bool(INTERNALS.search(words)) == internal
