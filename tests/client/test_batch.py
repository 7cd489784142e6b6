"""client/rank.py --queries: a file of queries into a file of rankings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import RankingClient, batch
from client.concurrency import in_order
from client.wire import PARTS
from tests.support.checkpoints import write_groups
from tests.support.clients import SCORES_ABS, rank_running
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.servers import Server
from tests.support.waiting import PATIENCE_S, eventually
from trainer.data.rankings import read_run

QUERIES = 12


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "queries.jsonl", QUERIES, 5)


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    return tmp_path / "ranked.jsonl"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def broken(queries: Path, changes: dict[int, str]) -> Path:
    """Lines of the file replaced, by their numbers."""
    lines = queries.read_text().splitlines()
    for number, line in changes.items():
        lines[number - 1] = line
    queries.write_text("\n".join(lines) + "\n", encoding="latin-1")  # bytes, as they are
    return queries


def files(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir() if one.name != "queries.jsonl")


def test_a_line_for_each_query_in_order(server: Server, queries: Path, ranked: Path, run: Any) -> None:
    code, out, err = run("--queries", queries, "--output", ranked, "--url", server.url, "--top_k", "3")
    assert (code, out) == (0, [])
    (line,) = err
    assert line.startswith(f"{QUERIES} queries, {QUERIES * 5} documents in ")
    assert "queries/s" in line and "documents/s" in line
    with RankingClient(server.url) as client:
        for given, found in zip(records(queries), records(ranked), strict=True):
            expected = client.rank(given["query"], given["documents"], 3)
            assert found["query_id"] == given["query_id"]
            assert [one["doc_id"] for one in found["documents"]] == [one.doc_id for one in expected]
            scores = [one.score for one in expected]
            assert [one["score"] for one in found["documents"]] == pytest.approx(scores, abs=SCORES_ABS)
    assert files(ranked) == ["ranked.jsonl"]
    _, out, _ = run("--queries", queries, "--url", server.url, "--top_k", "3")
    assert [json.loads(line)["query_id"] for line in out] == [f"q{number}" for number in range(QUERIES)]
    code, _, err = run("--queries", queries, "--output", ranked, "--url", server.url)
    assert (code, len(err)) == (2, 1)
    assert f"{ranked} is there already" in err[0]


def test_explain_of_a_batch(server: Server, queries: Path, run: Any) -> None:
    code, _, err = run("--queries", queries, "--url", server.url, "--explain")
    assert code == 0
    assert err[1].startswith(f"{QUERIES} requests to ranker at {server.url}, 8 at a time")
    names = [line[:26].strip() for line in err[3:]]
    steps = "tokenizer", *PARTS["TOKENIZER_MS"], "student", *PARTS["STUDENT_MS"]
    assert names == ["client, all requests", "ranker", *steps, "between the steps"]
    assert not any("other clients" in line for line in err)


def test_queries_without_ids_and_documents_as_strings(server: Server, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('\n{"query": "river", "documents": ["bridge", {"id": "d9", "title": "market"}]}\n')
    code, out, _ = run("--queries", path, "--url", server.url)
    assert code == 0
    (found,) = map(json.loads, out)
    assert found["query_id"] == "2"
    assert {one["doc_id"] for one in found["documents"]} == {"0", "d9"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON: Expecting property name"),
        ('{"query_id": "a", "query": "river"}', "query 'a': 'documents' must be a list with at least one document"),
        ('{"query_id": 3, "query": "river"}', "'query_id' must be a string, not int"),
        (
            '{"query_id": "a", "query": "river", "documents": ["b", {"title": 3}]}',
            "query 'a': document 1: 'title' of a document must be a string, not int",
        ),
        (
            '{"query_id": "a", "query": "river", "documents": ["' + "x" * 1_100_000 + '"]}',
            "query 'a': SERVER refused the request: document 0 has 1100000 bytes",
        ),
        ('{"query_id": "a", "query": " ", "documents": ["river"]}', "query 'a': the query is empty"),
        ('{"query": "\xff\xfe"}', "not UTF-8: invalid start byte at byte 11"),
        (
            '{"query_id": "\\ud800", "query": "river", "documents": ["bridge"]}',
            r"query_id '\ud800' has a lone surrogate",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "trec"])
def test_a_query_at_fault_stops_or_is_left_out(
    server: Server, queries: Path, ranked: Path, run: Any, line: str, message: str, kind: str
) -> None:
    whole = queries.read_text()
    broken(queries, {7: line})
    flags = ["--queries", queries, "--output", ranked, "--url", server.url, "--format", kind]
    code, _, err = run(*flags)
    assert (code, len(err)) == (2, 1)
    part = f"{ranked}.part"
    named = f"{queries}:7: {message.replace('SERVER', server.url)}"
    assert err[0].startswith(f"error: {named}")
    assert err[0].endswith(f"({part} keeps the 6 before: the same command resumes)")
    assert files(ranked) == ["ranked.jsonl.part", "ranked.jsonl.part.json"]

    code, _, err = run(*flags, "--on_error", "skip")
    assert (code, len(err)) == (1, 2)
    assert err[0].startswith(f"left out: {named}")
    assert err[1].startswith("5 queries, 25 documents in ")
    assert "after 6 of an earlier start" in err[1] and err[1].endswith("; 1 left out")
    assert files(ranked) == ["ranked.jsonl"]
    expected = [f"q{number}" for number in range(QUERIES) if number != 6]
    assert ([*read_run(ranked)] if kind == "trec" else [one["query_id"] for one in records(ranked)]) == expected
    queries.write_text(whole)


def test_a_server_that_is_gone_stops_even_so(queries: Path, ranked: Path, run: Any) -> None:
    def break_down(context: Any) -> None:
        if len(service.sizes) > 4:
            context.abort(grpc.StatusCode.INTERNAL, "an engine that is broken")

    service = OddServer(np.arange, break_down)
    with odd_server(service) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--in_flight", "1", "--on_error", "skip"]
        code, _, (line,) = run(*flags)
        assert code == 2
        assert line.startswith(f"error: {queries}:5: query 'q4': {url}")
        assert "keeps the 4 before" in line
        service.act = lambda context: None
        assert run(*flags)[0] == 0
    assert [one["query_id"] for one in records(ranked)] == [f"q{number}" for number in range(QUERIES)]


@pytest.mark.parametrize("kind", ["jsonl", "trec"])
def test_a_start_goes_on_wherever_the_last_was_killed(queries: Path, ranked: Path, run: Any, kind: str) -> None:
    with odd_server(OddServer(np.arange)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--format", kind]
        assert run(*flags)[0] == 0
        whole = ranked.read_bytes()
        line = whole.index(b"\n") + 1
        for size in (0, 1, line - 1, line, line + 1, len(whole) // 2, len(whole) - 1, len(whole)):
            ranked.rename(part := ranked.with_name("ranked.jsonl.part"))
            part.write_bytes(whole[:size])
            begun = {"model": "ranker", "version": "", "format": kind, "top_k": None, "tag": "disranker"}
            ranked.with_name("ranked.jsonl.part.json").write_text(json.dumps(begun))
            code, _, (line_of_progress,) = run(*flags)
            assert code == 0, line_of_progress
            assert ranked.read_bytes() == whole
            done = whole[:size].count(b"\n") // (1 if kind == "jsonl" else 5)
            assert line_of_progress.startswith(f"{QUERIES - done} queries")


def test_a_killed_batch_loses_no_query_that_was_answered(queries: Path, ranked: Path, run: Any) -> None:
    held = Held(free=5)
    with odd_server(OddServer(np.arange, held)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--in_flight", "1"]
        with rank_running(*flags) as process:
            assert held.held.wait(PATIENCE_S)
            part = ranked.with_name("ranked.jsonl.part")
            eventually(lambda: len(part.read_bytes().splitlines()) == 5)
            process.kill()
        held.release()
        code, _, (line,) = run(*flags)
    assert (code, "7 queries" in line, "after 5 of an earlier start" in line) == (0, True, True)
    assert len(records(ranked)) == QUERIES


def test_a_batch_waits_while_a_server_has_much_to_do(queries: Path, ranked: Path, run: Any) -> None:
    service = OddServer(np.arange, refusing(grpc.StatusCode.UNAVAILABLE, "full, retry in 0.1 s", times=8))
    with odd_server(service) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url]
        assert run(*flags)[0] == 0
        assert len(records(ranked)) == QUERIES
        assert {one["priority"] for one in service.parameters} == {2}
        ranked.unlink()
        service.act = refusing(grpc.StatusCode.UNAVAILABLE, "full, retry in 600 s")
        code, _, (line,) = run(*flags, "--timeout", 15)
        assert (code, "is overloaded: full, retry in 600 s" in line) == (2, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--top_k", "2"], "was begun with top_k None, not 2"),
        (["--format", "trec"], "was begun with format 'jsonl', not 'trec'"),
        (["--model", "teacher_ranker"], "was begun with model 'ranker', not 'teacher_ranker'"),
    ],
)
def test_other_settings_do_not_go_on(queries: Path, ranked: Path, run: Any, changed: list[str], message: str) -> None:
    with odd_server(OddServer(np.arange)) as url:
        broken(queries, {3: "{oops"})
        flags = ["--queries", queries, "--output", ranked, "--url", url]
        assert run(*flags)[0] == 2
        before = ranked.with_name("ranked.jsonl.part").read_bytes()
        code, _, (line,) = run(*flags, *changed)
        assert code == 2
        assert f"{ranked}.part {message}" in line
        assert ranked.with_name("ranked.jsonl.part").read_bytes() == before


def test_other_queries_do_not_go_on(queries: Path, ranked: Path, run: Any) -> None:
    with odd_server(OddServer(np.arange)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url]
        lines = broken(queries, {5: "{oops"}).read_text().splitlines()
        assert run(*flags)[0] == 2
        part = ranked.with_name("ranked.jsonl.part")
        before = part.read_bytes()
        queries.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
        code, _, (line,) = run(*flags)
        assert code == 2
        assert f"{part}:2 is of query 'q1' and {queries}:2 is of 'q2'" in line
        assert part.read_bytes() == before
        part.write_bytes(b"oops\n" + before)
        assert f"{part}:1 is no line of a ranking" in run(*flags)[2][0]


def test_trec_ids_are_one_word_and_come_once(queries: Path, ranked: Path, run: Any) -> None:
    with odd_server(OddServer(np.arange)) as url:
        flags = ["--queries", queries, "--url", url, "--format", "trec"]
        for line, message in (
            ({"query_id": "q 1", "documents": ["a"]}, "2: query 'q 1': query_id 'q 1' has white space"),
            ({"query_id": "q0", "documents": ["a"]}, "2: query 'q0': 'q0' comes twice"),
            (
                {"query_id": "q", "documents": [{"id": "a b", "title": ""}]},
                "2: query 'q': document 0: doc_id 'a b' has",
            ),
            (
                {"query_id": "q", "documents": [{"id": "1", "title": ""}, "b"]},
                "2: query 'q': document 1: '1' comes twice",
            ),
        ):
            code, out, (said,) = run(*flags[:1], broken(queries, {2: json.dumps({"query": "a", **line})}), *flags[2:])
            assert code == 2
            assert said.startswith(f"error: {queries}:{message}")
            assert len(out) == 5  # of the query before


def test_more_documents_than_the_server_takes_at_once(server: Server, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "queries.jsonl"
    many = [f"river {number}" for number in range(2500)]
    path.write_text("\n".join(json.dumps({"query": "river", "documents": many}) for _ in range(2)))
    code, out, err = run("--queries", path, "--url", server.url, "--explain")
    assert code == 0
    assert [len(json.loads(line)["documents"]) for line in out] == [2500, 2500]
    assert err[1].startswith("6 requests to ranker")


def test_a_slow_reader_holds_the_batch_back_and_gets_all(queries: Path) -> None:
    queries, service = write_groups(queries, 400, 30), OddServer(np.arange)
    with odd_server(service) as url, rank_running("--queries", queries, "--url", url) as process:
        first = process.stdout.readline()
        eventually(lambda: stands_still(service.sizes))
        # A pipe holds 64 KiB, some 20 such lines; besides those that were asked for.
        assert len(service.sizes) < 100
        lines = [first, *process.stdout]
    assert process.returncode == 0
    assert [json.loads(line)["query_id"] for line in lines] == [f"q{number}" for number in range(400)]


@pytest.mark.parametrize("kind", ["stdin", "fifo"])
def test_queries_that_come_slowly_are_answered_as_they_come(queries: Path, tmp_path: Path, kind: str) -> None:
    """As from ``tail -f``; and Ctrl-C does not wait for the next one."""
    lines = queries.read_bytes().splitlines(keepends=True)
    os.mkfifo(fifo := tmp_path / "fifo")
    with odd_server(OddServer(np.arange)) as url:
        flags = ["--queries", "-" if kind == "stdin" else fifo, "--url", url]
        with rank_running(*flags, stdin=subprocess.PIPE) as process:
            source = process.stdin if kind == "stdin" else fifo.open("wb")
            for number, line in enumerate(lines[:3]):
                source.write(line)
                source.flush()
                assert json.loads(process.stdout.readline())["query_id"] == f"q{number}"
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
            source.close()
            assert process.stderr.read() == b""


def test_a_signal_ends_a_wait_that_it_did_not_interrupt() -> None:
    """As one that comes just before the wait; here it comes in another thread."""
    over, seen = threading.Event(), list[bool]()

    def call(_: int) -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append(over.wait(PATIENCE_S))

    def interrupt(*_: object) -> None:
        over.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(in_order(call, [1], 1))
    finally:
        signal.signal(signal.SIGINT, before)
    eventually(lambda: seen)
    assert seen == [True]


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    queries: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "EVERY_S", 0.0)
    main_end, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with odd_server(OddServer(np.arange)) as url:
        _, _, err = run("--queries", queries, "--url", url)
        assert [line.split(",")[0] for line in err[:-1]] == [f"{n} of {QUERIES} queries" for n in range(1, QUERIES + 1)]
        with rank_running("--queries", queries, "--url", url, stdout=subprocess.DEVNULL, stderr=terminal):
            pass
    os.close(terminal)
    assert f"{QUERIES}/{QUERIES}" in os.read(main_end, 100_000).decode()
    os.close(main_end)


def stands_still(growing: list[int]) -> bool:
    before = len(growing)
    time.sleep(0.5)
    return len(growing) == before
