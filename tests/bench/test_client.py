"""bench.client against a running server, shortened."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from bench.client import __main__ as bench
from bench.client import sections
from client import RankingClient
from tests.support.servers import Server, ports


def test_tables_and_the_goal(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", server.url, "--documents", "20", "--requests", "8", "--rounds", "2", "--concurrency", "4"]
    code = bench.main(flags)
    out, err = capsys.readouterr()
    assert err == ""
    for row in ("threads", "asyncio", "texts to bytes", "sorting, records", "bytes to tensors", "the call"):
        assert row in out
    assert out.splitlines()[-1].startswith(f"goal of 5% {'reached' if code == 0 else 'missed'}: our code takes ")
    with RankingClient(server.url) as client:
        assert len(client.score("river", ["a", "b"])) == 2  # nothing stays wrapped


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--url", f"127.0.0.1:{ports()['grpc']}", "--requests", "1", "--documents", "1"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_a_functions_time_is_without_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])

    def inner() -> None:
        clock[0] += 5

    def outer() -> None:
        clock[0] += 2
        place.inner()
        place.inner()
        clock[0] += 1

    place = SimpleNamespace(inner=inner, outer=outer)
    with sections.measured((("ours", "outer", place, "outer"), ("tritonclient", "inner", place, "inner"))) as seconds:
        place.outer()
        place.inner()
    assert (place.inner, place.outer) == (inner, outer)
    assert seconds == {("ours", "outer"): 3, ("tritonclient", "inner"): 15}
