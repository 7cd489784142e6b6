"""client/rank.py --queries: a file of queries into a file of rankings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import RankingClient, batch, rank
from tests.support.checkpoints import write_groups
from tests.support.clients import SCORES_ABS
from tests.support.odd_servers import OddServer, odd_server
from tests.support.servers import Server
from trainer.data.rankings import read_run

SCRIPT = Path(rank.__file__)
QUERIES = 12


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "queries.jsonl", QUERIES, 5)


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    return tmp_path / "ranked.jsonl"


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, list[str]]]:
    """The command in this process: exit code, standard output, lines of standard error."""

    def run(*flags: str | Path) -> tuple[int, str, list[str]]:
        code = rank.main([str(flag) for flag in flags])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode().splitlines()

    return run


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def broken(queries: Path, changes: dict[int, str]) -> Path:
    """Lines of the file replaced, by their numbers."""
    lines = queries.read_text().splitlines()
    for number, line in changes.items():
        lines[number - 1] = line
    queries.write_text("\n".join(lines) + "\n")
    return queries


def files(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir() if one.name != "queries.jsonl")


def test_a_line_for_each_query_in_order(server: Server, queries: Path, ranked: Path, run: Any) -> None:
    code, out, err = run("--queries", queries, "--output", ranked, "--url", server.url, "--top_k", "3")
    assert (code, out) == (0, "")
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
    assert [json.loads(line)["query_id"] for line in out.splitlines()] == [f"q{number}" for number in range(QUERIES)]
    code, _, err = run("--queries", queries, "--output", ranked, "--url", server.url)
    assert (code, len(err)) == (2, 1)
    assert f"{ranked} is there already" in err[0]


def test_explain_of_a_batch(server: Server, queries: Path, run: Any) -> None:
    code, _, err = run("--queries", queries, "--url", server.url, "--explain")
    assert code == 0
    assert err[1].startswith(f"{QUERIES} requests to ranker at {server.url}, 8 at a time")
    names = [line[:26].strip() for line in err[3:8]]
    assert names == ["client, all requests", "ranker", "tokenizer", "student", "student's engine"]
    assert not any("other clients" in line for line in err)


def test_queries_without_ids_and_documents_as_strings(server: Server, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('\n{"query": "river", "documents": ["bridge", {"id": "d9", "title": "market"}]}\n')
    code, out, _ = run("--queries", path, "--url", server.url)
    assert code == 0
    (found,) = [json.loads(line) for line in out.splitlines()]
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


def test_a_line_that_is_not_utf_8(queries: Path, run: Any) -> None:
    lines = queries.read_bytes().splitlines(keepends=True)
    queries.write_bytes(b"".join([*lines[:2], b'{"query": "\xff\xfe"}\n', *lines[2:]]))
    with odd_server(OddServer(np.arange)) as url:
        code, out, (line,) = run("--queries", queries, "--url", url)
        assert (code, len(out.splitlines())) == (2, 2)
        assert line == f"error: {queries}:3: not UTF-8: invalid start byte at byte 11"
        code, out, _ = run("--queries", queries, "--url", url, "--on_error", "skip")
        assert (code, len(out.splitlines())) == (1, QUERIES)


def test_a_server_that_is_gone_stops_even_so(queries: Path, ranked: Path, run: Any) -> None:
    left = [4]

    def reply(count: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise SystemError("an engine that is broken")
        return np.arange(count)

    with odd_server(OddServer(reply)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--in_flight", "1", "--on_error", "skip"]
        code, _, err = run(*flags)
        assert (code, len(err)) == (2, 1)
        assert err[0].startswith(f"error: {queries}:5: query 'q4': {url}")
        assert "keeps the 4 before" in err[0]
        left[0] = 100
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
    going_on, stuck, left = threading.Event(), threading.Event(), [5]

    def reply(count: int) -> Any:
        left[0] -= 1
        if left[0] < 0 and not going_on.is_set():
            stuck.set()
            going_on.wait()
        return np.arange(count)

    with odd_server(OddServer(reply)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--in_flight", "1"]
        with subprocess.Popen([sys.executable, SCRIPT, *map(str, flags)], stderr=subprocess.PIPE) as process:
            assert stuck.wait(30)
            part = ranked.with_name("ranked.jsonl.part")
            wait_until(lambda: len(part.read_bytes().splitlines()) == 5)
            process.kill()
        going_on.set()
        code, _, (line,) = run(*flags)
    assert (code, "7 queries" in line, "after 5 of an earlier start" in line) == (0, True, True)
    assert len(records(ranked)) == QUERIES


def test_ctrl_c_keeps_what_is_there_and_does_not_wait(queries: Path, ranked: Path) -> None:
    going_on, stuck = threading.Event(), threading.Event()

    def hang(count: int) -> Any:
        stuck.set()
        going_on.wait()
        return np.arange(count)

    with odd_server(OddServer(hang)) as url:
        flags = ["--queries", queries, "--output", ranked, "--url", url, "--timeout", "600"]
        with subprocess.Popen([sys.executable, SCRIPT, *map(str, flags)], stderr=subprocess.PIPE) as process:
            assert stuck.wait(30)
            process.send_signal(signal.SIGINT)
            err = last_words(process)
        going_on.set()
    assert process.returncode == 130
    assert err.decode() == f"interrupted: {ranked}.part keeps 0 queries, the same command resumes\n"
    assert files(ranked) == ["ranked.jsonl.part", "ranked.jsonl.part.json"]


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
            assert len(out.splitlines()) == 5  # of the query before


def test_more_documents_than_the_server_takes_at_once(server: Server, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "queries.jsonl"
    many = [f"river {number}" for number in range(2500)]
    path.write_text("\n".join(json.dumps({"query": "river", "documents": many}) for _ in range(2)))
    code, out, err = run("--queries", path, "--url", server.url, "--explain")
    assert code == 0
    assert [len(json.loads(line)["documents"]) for line in out.splitlines()] == [2500, 2500]
    assert err[1].startswith("6 requests to ranker")


def test_a_slow_reader_holds_the_batch_back_and_gets_all(queries: Path) -> None:
    queries = write_groups(queries, 400, 30)
    answered = [0]

    def reply(count: int) -> Any:
        answered[0] += 1
        return np.arange(count)

    with odd_server(OddServer(reply)) as url:
        flags = [sys.executable, str(SCRIPT), "--queries", str(queries), "--url", url]
        with subprocess.Popen(flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            wait_until(lambda: stands_still(answered))
            # A pipe holds 64 KiB, some 20 such lines; besides those that were asked for.
            assert answered[0] < 100
            lines = [first, *process.stdout]
    assert process.returncode == 0
    assert [json.loads(line)["query_id"] for line in lines] == [f"q{number}" for number in range(400)]


@pytest.mark.parametrize("kind", ["stdin", "fifo"])
def test_queries_that_come_slowly_are_answered_as_they_come(queries: Path, tmp_path: Path, kind: str) -> None:
    """As from ``tail -f``; and Ctrl-C does not wait for the next one."""
    lines = queries.read_bytes().splitlines(keepends=True)
    os.mkfifo(fifo := tmp_path / "fifo")
    with odd_server(OddServer(np.arange)) as url:
        flags = [sys.executable, str(SCRIPT), "--queries", "-" if kind == "stdin" else str(fifo), "--url", url]
        with subprocess.Popen(flags, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            hangs = threading.Timer(60, process.kill)
            hangs.start()
            source = process.stdin if kind == "stdin" else fifo.open("wb")
            for number, line in enumerate(lines[:3]):
                source.write(line)
                source.flush()
                assert json.loads(process.stdout.readline())["query_id"] == f"q{number}"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            hangs.cancel()
            source.close()
            assert process.stderr is not None and process.stderr.read() == b""


def test_a_reader_that_leaves_early_ends_the_batch(queries: Path) -> None:
    queries = write_groups(queries, 400, 30)
    with odd_server(OddServer(np.arange)) as url:
        flags = [sys.executable, str(SCRIPT), "--queries", str(queries), "--url", url]
        with subprocess.Popen(flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
    assert process.returncode == 0


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    queries: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "EVERY_S", 0.0)
    main_end, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with odd_server(OddServer(np.arange)) as url:
        _, _, err = run("--queries", queries, "--url", url)
        assert [line.split(",")[0] for line in err[:-1]] == [f"{n} of {QUERIES} queries" for n in range(1, QUERIES + 1)]
        command: Sequence[str | Path] = [sys.executable, SCRIPT, "--queries", queries, "--url", url]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=True, timeout=300)
    os.close(terminal)
    assert f"{QUERIES}/{QUERIES}" in os.read(main_end, 100_000).decode()
    os.close(main_end)


def last_words(process: subprocess.Popen[bytes]) -> bytes:
    """Its standard error; a process that does not end is killed, and fails the test."""
    try:
        return process.communicate(timeout=180)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def stands_still(counter: list[int]) -> bool:
    before = counter[0]
    time.sleep(0.5)
    return counter[0] == before


def wait_until(holds: Callable[[], bool], patience_s: float = 30.0) -> None:
    ends = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
