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
from tests.support.clients import DOCUMENTS, QUERY, SCORES_ABS
from tests.support.odd_servers import OddServer, odd_server
from tests.support.servers import Server, ports
from trainer.data.rankings import read_run

SCRIPT = Path(rank.__file__)


def command(*flags: str | Path, given: bytes = b"", authorization: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, SCRIPT, *flags],
        input=given,
        capture_output=True,
        timeout=300,
        env={**os.environ, AUTHORIZATION: authorization},
    )


def answer(capfdbinary: pytest.CaptureFixture[bytes], *flags: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command in this process, which saves its start."""
    code = rank.main([str(flag) for flag in flags])
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


def refusal(capfdbinary: pytest.CaptureFixture[bytes], *flags: str | Path) -> str:
    code, out, err = answer(capfdbinary, *flags)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


def test_a_checkout_is_enough_and_a_pipe_gets_json_lines(
    server: Server, client: RankingClient, file: Path, tmp_path: Path
) -> None:
    flags = [sys.executable, str(SCRIPT), "--query", QUERY, "--url", server.url]
    elsewhere = {"cwd": tmp_path, "env": {"PATH": "", "PYTHONPATH": ""}, "capture_output": True, "timeout": 60}
    result = subprocess.run([*flags, str(file)], **elsewhere)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.decode().splitlines()]
    scores = [one.score for one in client.rank(QUERY, DOCUMENTS)]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=SCORES_ABS)
    assert {one["doc_id"] for one in found} == {"d7", "d8", "d9", "7"}  # the last by its line
    assert set(found[0]) == {"rank", "index", "doc_id", "score", "probability", "truncated", "title"}
    again = command("--query", QUERY, "--url", server.url, "-", given=file.read_bytes())
    assert [json.loads(line)["index"] for line in again.stdout.splitlines()] == [one["index"] for one in found]


def test_a_terminal_gets_a_table(server: Server, file: Path) -> None:
    main_end, terminal = pty.openpty()
    flags = ["--query", QUERY, "--url", server.url, "--top_k", "3", str(file)]
    environment = {**os.environ, "COLUMNS": "60"}
    subprocess.run([sys.executable, SCRIPT, *flags], stdout=terminal, env=environment, check=True, timeout=300)
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
    server: Server, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"doc_id": "d\u001b[31m", "summary": "winter\n\u001b[2J " + "long " * 300}))
    _, out, _ = answer(capfdbinary, "--query", QUERY, "--url", server.url, "--format", "table", path)
    (_, line) = out.splitlines()
    assert "\x1b" not in line
    assert "winter" in line
    assert line.endswith("… (cut)")


def test_a_trec_run_is_read_by_others(
    server: Server, client: RankingClient, file: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    flags = ["--query", QUERY, "--url", server.url, "--format", "trec", "--query_id", "q7", "--tag", "t"]
    code, out, _ = answer(capfdbinary, *flags, file)
    assert code == 0
    query_id, q0, doc_id, rank_of_it, score, tag = out.splitlines()[1].split(" ")
    second = client.rank(QUERY, DOCUMENTS)[1]
    assert (query_id, q0, doc_id, rank_of_it, tag) == ("q7", "Q0", second.doc_id, "2", "t")
    assert float(score) == pytest.approx(second.score, abs=SCORES_ABS)
    (run := tmp_path / "a.run").write_text(out)
    assert [*read_run(run)["q7"]] == [
        found.doc_id if found.index < 3 else "7" for found in client.rank(QUERY, DOCUMENTS)
    ]


def test_a_trec_run_holds_no_white_space(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"doc_id": "a", "title": "river"}\n\n{"doc_id": "d 1", "title": "river"}\n')
    flags: list[str | Path] = ["--query", QUERY, "--format", "trec", path]
    with odd_server(OddServer(lambda count: 0)) as url:  # type: ignore[arg-type, return-value]
        assert f"error: {path}:3: doc_id 'd 1' has white space" in refusal(capfdbinary, *flags, "--url", url)
        path.write_text('{"doc_id": "a", "title": "river"}\n{"doc_id": "a", "title": "river"}\n')
        assert f"error: {path}:2: 'a' comes twice" in refusal(capfdbinary, *flags, "--url", url)
    assert "--tag 'my run' has white space" in refusal(capfdbinary, *flags, "--tag", "my run")
    assert "--query_id '' has white space" in refusal(capfdbinary, *flags, "--query_id", "")


def test_explain_says_where_the_time_went(
    server: Server, file: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    flags = ["--query", QUERY, "--url", server.url, "--explain"]
    code, out, err = answer(capfdbinary, *flags, file)
    assert (code, len(out.splitlines())) == (0, 4)
    head, titles, *rows = err.splitlines()
    assert head == f"1 request to ranker at {server.url}, 1 at a time; means of a request in ms:"
    assert titles.split() == ["total", "queue", "input", "infer", "output"]
    times = {}
    for row in rows[:6]:
        name, *values = re.split(r"\s{2,}", row.strip())
        times[name] = [float(value) for value in values]
    steps = ["tokenizer", "student"]
    assert [*times] == ["client", "network, serialisation", "ranker", *steps, "student's engine"]
    assert all(value >= 0 for values in times.values() for value in values)
    assert all(len(times[step]) == 5 for step in steps)
    for whole, parts in (
        ("ranker", (*steps, "student's engine")),
        ("client", ("ranker", "network, serialisation")),
    ):
        rest = times[parts[-1]][0]
        assert rest == pytest.approx(max(0, times[whole][0] - sum(times[name][0] for name in parts[:-1])), abs=0.05)
    assert rows[6].startswith("student answers from threads of its own")
    assert len(rows) == 7  # nobody else's requests


def test_explain_says_whose_requests_are_in_the_figures(server: Server, client: RankingClient) -> None:
    with closing(Explainer(client.connection)) as explainer:
        for _ in range(3):
            client.score(QUERY, DOCUMENTS)
        assert [*explainer.lines(1, 0.5)][-1].startswith("requests of other clients in these figures of the server: 2;")
        assert "other clients" not in "".join(explainer.lines(3, 0.5))
        assert [*explainer.lines(4, 0.5)][-1] == "requests that the servers' statistics do not have: 1"


def test_bad_lines_are_named(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "docs.jsonl"
    for given, message in (
        (b'{"title": "a"}\n{oops\n', "2: not JSON: Expecting property name"),
        (b'{"title": "a"}\n\n[]\n', "3: a JSON object is needed, not list"),
        (b'{"doc_id": "a"}', "1: a JSON object with a title or a summary is needed"),
        (b'{"title": "a"}\n{"title": "\xff"}', "2: not UTF-8: invalid start byte at byte 11"),
        (b'{"title": null}', "1: 'title' of a document must be a string, not NoneType"),
        (b"[" * 100_000, "1: not JSON that can be read"),
        (b"1" * 10_000, "1: not JSON that can be read"),
    ):
        path.write_bytes(given)
        assert refusal(capfdbinary, "--query", QUERY, path).startswith(f"error: {path}:{message}")
    path.write_bytes(b"\n")
    assert refusal(capfdbinary, "--query", QUERY, path) == f"error: {path}: no documents in it"


def test_a_byte_order_mark_is_no_text(
    server: Server, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": "a", "title": "river"}\n', encoding="utf-8-sig")
    code, out, _ = answer(capfdbinary, "--query", QUERY, "--url", server.url, path)
    assert (code, json.loads(out)["doc_id"]) == (0, "a")


def test_other_bad_input_is_one_line(
    server: Server, file: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ask = ["--query", QUERY]
    assert "none.jsonl: cannot be read: No such file" in refusal(capfdbinary, *ask, tmp_path / "none.jsonl")
    assert f"{tmp_path}: cannot be read: Is a directory" in refusal(capfdbinary, *ask, tmp_path)
    assert "the query is empty" in refusal(capfdbinary, "--query", "", "--url", server.url, file)
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    assert f"no server answers at {nowhere}" in refusal(capfdbinary, *ask, "--url", nowhere, "--timeout", "2", file)
    at = ["--url", server.url]
    assert "does not serve the model" in refusal(capfdbinary, *ask, *at, "--model", "other", file)
    assert "does not serve the model" in refusal(capfdbinary, *ask, *at, "--version", "9", file)
    assert "does not serve the model" in refusal(capfdbinary, *ask, *at, "--model", "other", "--explain", file)
    for number in ("0", "-1"):
        assert "top_k must be at least 1" in refusal(capfdbinary, *ask, *at, "--top_k", number, file)
        assert "--in_flight must be from 1 to" in refusal(capfdbinary, "--queries", file, *at, "--in_flight", number)
    assert "--in_flight must be from 1 to" in refusal(capfdbinary, "--queries", file, *at, "--in_flight", "9" * 30)
    for number in ("0", "-1", "nan", "inf", "1e300"):
        assert "timeout_s must be above 0" in refusal(capfdbinary, *ask, *at, f"--timeout={number}", file)
    assert "no such file" in refusal(capfdbinary, *ask, *at, "--root_certificates", "none.pem", file)
    for flags in (["--query", QUERY], ["--queries", "a", "b"], [*ask, "--output", "a", "b"], ["b"]):
        with pytest.raises(SystemExit) as ended:
            rank.main(flags)
        assert ended.value.code == 2


def test_servers_share_the_work(server: Server, file: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    gone = f"127.0.0.1:{ports()['grpc']}"
    for urls in (["--url", f"{gone},{server.url}"], ["--url", gone, "--url", server.url]):
        code, out, _ = answer(capfdbinary, "--query", QUERY, *urls, file)
        assert (code, len(out.splitlines())) == (0, 4)


def test_the_authorization_comes_from_the_environment(file: Path) -> None:
    service = OddServer(lambda count: 1 + np.arange(count))
    with odd_server(service) as url:
        flags: list[str | Path] = ["--query", QUERY, "--url", url, file]
        assert command(*flags, authorization="Bearer secret").returncode == 0
        assert service.authorization == "Bearer secret"
        assert command(*flags, "--authorization", "Basic b", authorization="Bearer secret").returncode == 0
        assert service.authorization == "Basic b"


def test_a_certificate_of_ones_own(file: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(root := tmp_path / "root.pem"))
    pair = certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()
    with odd_server(OddServer(np.arange), grpc.ssl_server_credentials([pair])) as url:
        flags: list[str | Path] = ["--query", QUERY, "--url", url, "--timeout", "2", file]
        code, out, _ = answer(capfdbinary, *flags, "--root_certificates", root, "--explain")
        assert (code, len(out.splitlines())) == (2, 0)  # such a server has no statistics
        code, out, _ = answer(capfdbinary, *flags, "--root_certificates", root)
        assert (code, len(out.splitlines())) == (0, 4)
        for more in (["--tls"], []):  # by the authorities of the system, and without TLS
            code, out, err = answer(capfdbinary, *flags, *more)
            assert (code, out) == (2, "")
            assert f"error: no server answers at {url}" in err.splitlines()[-1]  # gRPC says before it, why


def test_a_server_that_asks_for_the_clients_certificate(
    file: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    authority = trustme.CA()
    theirs, ours = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    root, chain, key = (tmp_path / name for name in ("root.pem", "chain.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(root))
    ours.cert_chain_pems[0].write_to_path(str(chain))
    ours.private_key_pem.write_to_path(str(key))
    credentials = grpc.ssl_server_credentials(
        [(theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), True
    )
    with odd_server(OddServer(np.arange), credentials) as url:
        flags: list[str | Path] = ["--query", QUERY, "--url", url, "--timeout", "2", "--root_certificates", root, file]
        code, out, err = answer(capfdbinary, *flags)
        assert (code, out) == (2, "")
        assert f"error: no server answers at {url}" in err.splitlines()[-1]
        code, out, _ = answer(capfdbinary, *flags, "--certificate_chain", chain, "--private_key", key)
        assert (code, len(out.splitlines())) == (0, 4)
        assert "give both or neither" in refusal(capfdbinary, *flags, "--certificate_chain", chain)


def test_ctrl_c_is_130_and_nothing_else(file: Path) -> None:
    going_on, asked = threading.Event(), threading.Event()

    def hang(count: int) -> Any:
        asked.set()
        going_on.wait()
        return np.arange(count)

    with odd_server(OddServer(hang)) as url:
        flags = [sys.executable, str(SCRIPT), "--query", QUERY, "--url", url, str(file)]
        with subprocess.Popen(flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert asked.wait(30)
            process.send_signal(signal.SIGINT)
            hangs = threading.Timer(20, process.kill)
            hangs.start()
            assert process.communicate() == (b"", b"")
            hangs.cancel()
        going_on.set()
    assert process.returncode == 130


def test_a_reader_that_leaves_early_is_no_error(server: Server, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"title": "river " * 200}) for _ in range(500)), encoding="utf-8")
    flags = [sys.executable, str(SCRIPT), "--query", QUERY, "--url", server.url, str(many)]
    with subprocess.Popen(flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
