"""Fixtures of the client's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import RankingClient, rank
from tests.support.clients import DOCUMENTS, Blocking
from tests.support.servers import Server


@pytest.fixture(params=[RankingClient, Blocking], ids=["threads", "asyncio"])
def face(request: pytest.FixtureRequest) -> Any:
    """The class of a client; both faces have its methods."""
    return request.param


@pytest.fixture
def client(server: Server) -> Iterator[RankingClient]:
    with RankingClient(server.url) as client:
        yield client


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """A command in this process, which saves its start: exit code, lines of standard output and of standard error."""

    def run(*flags: object, main: Any = rank.main) -> tuple[int, list[str], list[str]]:
        code = main([str(flag) for flag in flags])
        out, err = capfdbinary.readouterr()
        return code, out.decode().splitlines(), err.decode().splitlines()

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """DOCUMENTS as lines, the last without an id."""
    records = [{"doc_id": one.doc_id, "title": one.title, "summary": one.summary} for one in DOCUMENTS]
    del records[-1]["doc_id"]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path
