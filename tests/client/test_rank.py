"""client/rank.py as a command, for one query, against a running server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from client import Document, RankingClient, rank
from client.explain import Explainer
from client.flags import AUTHORIZATION
from client.outputs import columns, fitted, padded, table
from client.records import RankedDocument
from client.wire import PARTS
from tests.support.checkpoints import write_groups
from tests.support.clients import DOCUMENTS, QUERY, SCORES_ABS, rank_running
from tests.support.odd_servers import Held, OddServer, odd_server
from tests.support.servers import Server, ports
from tests.support.waiting import PATIENCE_S
from trainer.data.rankings import read_run

SCRIPT = Path(rank.__file__)
Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """The one line that the command prints before it ends with exit code 2."""

    def refused(*flags: object) -> str:
        code, out, err = run(*flags)
        assert (code, out, len(err)) == (2, [], 1)
        return err[0]

    return refused


def test_a_checkout_is_enough_and_a_pipe_gets_json_lines(
    server: Server, client: RankingClient, file: Path, tmp_path: Path
) -> None:
    flags = [sys.executable, str(SCRIPT), "--query", QUERY, "--url", server.url]
    elsewhere = {"cwd": tmp_path, "env": {"PATH": "", "PYTHONPATH": ""}, "capture_output": True, "timeout": PATIENCE_S}
    result = subprocess.run([*flags, str(file)], **elsewhere)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.decode().splitlines()]
    scores = [one.score for one in client.rank(QUERY, DOCUMENTS)]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=SCORES_ABS)
    assert {one["doc_id"] for one in found} == {"d7", "d8", "d9", "7"}  # the last by its line
    assert set(found[0]) == {"rank", "index", "doc_id", "score", "probability", "truncated", "title"}
    with file.open() as given, rank_running("--query", QUERY, "--url", server.url, "-", stdin=given) as process:
        again = [json.loads(line)["index"] for line in process.stdout]
    assert again == [one["index"] for one in found]


def test_a_terminal_gets_a_table(server: Server, file: Path) -> None:
    main_end, terminal = pty.openpty()
    flags = ["--query", QUERY, "--url", server.url, "--top_k", 3, file]
    with rank_running(*flags, stdout=terminal, env={**os.environ, "COLUMNS": "60"}):
        pass
    os.close(terminal)
    lines = os.read(main_end, 10_000).decode().splitlines()
    os.close(main_end)
    assert lines[0].split() == ["rank", "score", "document", "title"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert all(columns(line) <= 60 for line in lines)


def test_the_table_keeps_its_columns_whatever_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = ["d1", "文書", "e\u0301te\u0301"]
    ranked = [
        RankedDocument(place, place - 1, name, 0.5, 0.6, place == 2, "标题" * 20)
        for place, name in enumerate(names, start=1)
    ]
    _, *lines = table(ranked, [Document()] * 3)
    assert {columns(line[: line.index("标")]) for line in lines} == {16 + len("document") + 2}
    assert [columns(line) <= 40 for line in lines] == [True] * 3
    assert [line.endswith("… (cut)") for line in lines] == [False, True, False]
    assert [columns(fitted("标题标题", room)) for room in range(9)] == [0, 1, 1, 3, 3, 5, 5, 7, 8]
    assert padded("标题", 3) == "标…"


def test_the_table_shows_summaries_of_untitled_documents_and_no_control_characters(
    server: Server, tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"doc_id": "d\u001b[31m", "summary": "winter\n\u001b[2J " + "long " * 300}))
    _, (_, line), _ = run("--query", QUERY, "--url", server.url, "--format", "table", path)
    assert "\x1b" not in line
    assert "winter" in line
    assert line.endswith("… (cut)")


def test_a_trec_run_is_read_by_others(
    server: Server, client: RankingClient, file: Path, tmp_path: Path, run: Run
) -> None:
    flags = ["--query", QUERY, "--url", server.url, "--format", "trec", "--query_id", "q7", "--tag", "t"]
    code, out, _ = run(*flags, file)
    assert code == 0
    query_id, q0, doc_id, place, score, tag = out[1].split(" ")
    expected = client.rank(QUERY, DOCUMENTS)
    assert (query_id, q0, doc_id, place, tag) == ("q7", "Q0", expected[1].doc_id, "2", "t")
    assert float(score) == pytest.approx(expected[1].score, abs=SCORES_ABS)
    (written := tmp_path / "a.run").write_text("\n".join(out))
    assert [*read_run(written)["q7"]] == [found.doc_id if found.index < 3 else "7" for found in expected]


def test_a_trec_run_holds_no_white_space(tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"doc_id": "a", "title": "river"}\n\n{"doc_id": "d 1", "title": "river"}\n')
    flags = ["--query", QUERY, "--format", "trec", path]
    assert f"error: {path}:3: doc_id 'd 1' has white space" in refused(*flags)
    path.write_text('{"doc_id": "a", "title": "river"}\n{"doc_id": "a", "title": "river"}\n')
    assert f"error: {path}:2: 'a' comes twice" in refused(*flags)
    assert "--tag 'my run' has white space" in refused(*flags, "--tag", "my run")
    assert "--query_id '' has white space" in refused(*flags, "--query_id", "")


def test_explain_says_where_the_time_went(server: Server, file: Path, run: Run) -> None:
    code, out, (head, titles, *rows) = run("--query", QUERY, "--url", server.url, "--explain", file)
    assert (code, len(out)) == (0, 4)
    assert head == f"1 request to ranker at {server.url}, 1 at a time; means of a request in ms:"
    assert titles.split() == ["total", "queue", "input", "infer", "output"]
    times = times_of(rows)
    steps = {"tokenizer": PARTS["TOKENIZER_MS"], "student": PARTS["STUDENT_MS"]}
    inside = [name for step, parts in steps.items() for name in (step, *parts)]
    assert [*times] == ["client", "network, serialisation", "ranker", *inside, "between the steps"]
    assert all(value >= 0 for values in times.values() for value in values)
    assert [len(times[step]) for step in steps] == [5, 4]
    assert times["engine"][0] > 0
    told = {step: sum(times[part][0] for part in parts) for step, parts in steps.items()}
    assert sum(told.values()) <= times["ranker"][0] + 0.05
    assert told["tokenizer"] <= times["tokenizer"][0] + 0.05
    assert times["student"][0] == pytest.approx(sum(times["student"][1:]), abs=0.05)
    assert times["student"][3] == pytest.approx(told["student"], abs=0.05)
    for whole, parts in (
        ("ranker", (*steps, "between the steps")),
        ("client", ("ranker", "network, serialisation")),
    ):
        rest = times[parts[-1]][0]
        assert rest == pytest.approx(max(0, times[whole][0] - sum(times[name][0] for name in parts[:-1])), abs=0.05)


def times_of(rows: list[str]) -> dict[str, list[float]]:
    """The numbers of each row of the table by its name."""
    named = (re.split(r"\s{2,}", row.strip()) for row in rows)
    return {name: [float(value) for value in values] for name, *values in named}


def test_explain_knows_the_engine_of_a_server_that_tells_no_times(server: Server, client: RankingClient) -> None:
    with closing(Explainer(client.connection)) as explainer:
        asking = threading.Thread(target=client.score, args=(QUERY, DOCUMENTS))  # which has no context, so nothing asks
        asking.start()
        asking.join(PATIENCE_S)
        _, _, *rows, note = explainer.lines(1, 0.5)
    assert [*times_of(rows)][2:] == ["ranker", "tokenizer", "student", "student's engine"]
    assert note.startswith("student answers from threads of its own")


def test_explain_says_whose_requests_are_in_the_figures(server: Server, client: RankingClient) -> None:
    with closing(Explainer(client.connection)) as explainer:
        for _ in range(3):
            client.score(QUERY, DOCUMENTS)
        assert [*explainer.lines(1, 0.5)][-1].startswith("requests of other clients in these figures of the server: 2;")
        assert "other clients" not in "".join(explainer.lines(3, 0.5))
        assert [*explainer.lines(4, 0.5)][-1] == "requests that the servers' statistics do not have: 1"


def test_bad_lines_are_named(tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "docs.jsonl"
    for given, message in (
        (b'{"title": "a"}\n{oops\n', ":2: not JSON: Expecting property name"),
        (b'{"title": "a"}\n\n[]\n', ":3: a JSON object is needed, not list"),
        (b'{"doc_id": "a"}', ":1: a document needs a title or a text (summary, text, "),
        (b'{"title": "a"}\n{"title": "\xff"}', ":2: not UTF-8: invalid start byte at byte 11"),
        (b'{"title": 3}', ":1: 'title' of a document must be a string, not int"),
        (b"[" * 100_000, ":1: not JSON that can be read"),
        (b"1" * 10_000, ":1: not JSON that can be read"),
        (b"\n", ": no documents in it"),
    ):
        path.write_bytes(given)
        assert refused("--query", QUERY, path).startswith(f"error: {path}{message}")


def test_a_byte_order_mark_is_no_text(server: Server, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": "a", "title": "river"}\n', encoding="utf-8-sig")
    code, (line,), _ = run("--query", QUERY, "--url", server.url, path)
    assert (code, json.loads(line)["doc_id"]) == (0, "a")


def test_other_bad_input_is_one_line(server: Server, file: Path, tmp_path: Path, refused: Any) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    ask: list[object] = ["--query", QUERY, "--url", server.url]
    cases: list[tuple[list[object], str]] = [
        ([*ask, tmp_path / "none.jsonl"], "none.jsonl: cannot be read: No such file"),
        ([*ask, tmp_path], f"{tmp_path}: cannot be read: Is a directory"),
        ([*ask[2:], "--query", "", file], "the query is empty"),
        ([*ask[:2], "--url", nowhere, "--timeout", 30, file], f"no server answers at {nowhere}"),
        ([*ask, "--model", "other", file], "does not serve the model"),
        ([*ask, "--version", "9", file], "does not serve the model"),
        ([*ask, "--model", "other", "--explain", file], "does not serve the model"),
        *(([*ask, "--top_k", number, file], "top_k must be at least 1") for number in (0, -1)),
        *((["--queries", file, "--in_flight", most], "--in_flight must be from 1 to") for most in (0, -1, "9" * 30)),
        *(([*ask, f"--timeout={value}", file], "timeout_s must be above 0") for value in (0, -1, "nan", "inf", 1e300)),
        ([*ask, "--root_certificates", "none.pem", file], "no such file"),
    ]
    for flags, message in cases:
        assert message in refused(*flags)


@pytest.mark.parametrize(
    "flags", [["--query", "a"], ["--queries", "a", "b"], ["--query", "a", "--output", "a", "b"], ["b"]]
)
def test_flags_that_do_not_go_together(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        rank.main(flags)
    assert ended.value.code == 2


def test_servers_share_the_work(server: Server, file: Path, run: Run) -> None:
    gone = f"127.0.0.1:{ports()['grpc']}"
    for urls in (["--url", f"{gone},{server.url}"], ["--url", gone, "--url", server.url]):
        code, out, _ = run("--query", QUERY, *urls, file)
        assert (code, len(out)) == (0, 4)


def test_the_authorization_comes_from_the_environment(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHORIZATION, "Bearer secret")
    service = OddServer(lambda count: 1 + np.arange(count))
    with odd_server(service) as url:
        for flags, expected in (([], "Bearer secret"), (["--authorization", "Basic b"], "Basic b")):
            assert run("--query", QUERY, "--url", url, file, *flags)[0] == 0
            assert service.authorization == expected


def test_certificates_of_both_sides(file: Path, tmp_path: Path, run: Run, refused: Any) -> None:
    authority = trustme.CA()
    theirs, ours = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    root, chain, key = (tmp_path / name for name in ("root.pem", "chain.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(root))
    ours.cert_chain_pems[0].write_to_path(str(chain))
    ours.private_key_pem.write_to_path(str(key))
    pair = theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    with odd_server(OddServer(np.arange), credentials) as url:
        flags = ["--query", QUERY, "--url", url, "--timeout", 30, file]
        all_three = [*flags, "--root_certificates", root, "--certificate_chain", chain, "--private_key", key]
        code, out, _ = run(*all_three)
        assert (code, len(out)) == (0, 4)
        assert run(*all_three, "--explain")[:2] == (2, [])  # such a server has no statistics
        # Without a certificate of ours, by the authorities of the system, and without TLS.
        for more in (["--root_certificates", root], ["--tls"], []):
            code, out, err = run(*flags, *more)
            assert (code, out) == (2, [])
            assert f"error: no server answers at {url}" in err[-1]  # gRPC says before it, why
        assert "give both or neither" in refused(*flags, "--certificate_chain", chain)


@pytest.mark.parametrize("batch", [False, True], ids=["query", "queries"])
def test_ctrl_c_does_not_wait_and_keeps_what_is_there(file: Path, tmp_path: Path, batch: bool) -> None:
    held, ranked = Held(), tmp_path / "ranked.jsonl"
    queries = write_groups(tmp_path / "queries.jsonl", 12, 5)
    with odd_server(OddServer(np.arange, held)) as url:
        flags = ["--queries", queries, "--output", ranked, "--timeout", 600] if batch else ["--query", QUERY, file]
        with rank_running(*flags, "--url", url) as process:
            assert held.held.wait(PATIENCE_S)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    said = f"interrupted: {ranked}.part keeps 0 queries, the same command resumes\n" if batch else ""
    assert (process.returncode, out, err.decode()) == (130, b"", said)
    assert len([*tmp_path.glob("ranked.jsonl.part*")]) == (2 if batch else 0)


@pytest.mark.parametrize("batch", [False, True], ids=["query", "queries"])
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, batch: bool) -> None:
    queries, many = write_groups(tmp_path / "queries.jsonl", 400, 30), tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"title": "river " * 200}) for _ in range(500)), encoding="utf-8")
    with odd_server(OddServer(np.arange)) as url:
        flags = ["--queries", queries] if batch else ["--query", QUERY, many]
        with rank_running(*flags, "--url", url) as process:
            process.stdout.read(1)
            process.stdout.close()
            assert process.stderr.read() == b""
    assert process.returncode == 0
