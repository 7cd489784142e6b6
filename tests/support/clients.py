"""Both faces of the client behind the same methods, and what they are asked in tests."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client import AsyncRankingClient, Document, RankedDocument, rank

QUERY = "garden bridge"
DOCUMENTS = [
    Document(doc_id="d7", title="river bridge", summary="garden market of silver"),
    Document(doc_id="d8", title="中文 标题"),
    Document(doc_id="d9", summary="winter " * 300),
    Document(title="copper", summary="forest"),
]
# A library chooses its kernels by the shape of a call, and what else is under way shares it: the last digits differ.
SCORES_ABS = 1e-6


class Blocking:
    """AsyncRankingClient with the methods of RankingClient, in an event loop of its own."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._client = AsyncRankingClient(*arguments, **settings)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.iscoroutinefunction(found):
            return found

        def call(*arguments: Any, **settings: Any) -> Any:
            return self._loop.run_until_complete(found(*arguments, **settings))

        return call

    def rank_many(self, *arguments: Any, **settings: Any) -> Iterator[Any]:
        answers: Any = self._client.rank_many(*arguments, **settings)
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(answers.aclose())


def same(found: list[RankedDocument], expected: list[RankedDocument]) -> bool:
    """The same rankings, with scores to SCORES_ABS."""
    for ranked in (found, expected):
        assert [one.rank for one in ranked] == [*range(1, len(ranked) + 1)]
    assert [(one.index, one.doc_id, one.title, one.truncated) for one in found] == [
        (one.index, one.doc_id, one.title, one.truncated) for one in expected
    ]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], rel=0, abs=SCORES_ABS)
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], rel=0, abs=1e-6)
    return True


@contextmanager
def rank_running(*flags: object, **streams: Any) -> Iterator[Any]:
    """client/rank.py as a process of its own; one that hangs is killed, and fails the test by its exit code."""
    command = [sys.executable, rank.__file__, *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command, **pipes) as process:
        hangs = threading.Timer(180, process.kill)
        hangs.start()
        yield process
        process.wait()
        hangs.cancel()
