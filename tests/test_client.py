"""The client against a running server: the library and the command."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client import (
    Document,
    InvalidRequestError,
    ModelNotReadyError,
    RankingClient,
    RequestTimeoutError,
    ServerUnavailableError,
    rank,
)
from model_repository.tokenizer import pair_encoding
from tests.servers import Reference, Server, ports

SCRIPT = Path(rank.__file__)
QUERY = "garden bridge"
DOCUMENTS = [
    Document("d7", "river bridge", "garden market of silver"),
    Document("d8", "中文 标题", ""),
    Document("d9", "", "winter " * 300),
    Document("", "copper", "forest"),
]


@pytest.fixture
def client(server: Server) -> RankingClient:
    return RankingClient(server.url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    records = [{"doc_id": one.doc_id, "title": one.title, "summary": one.summary} for one in DOCUMENTS]
    del records[-1]["doc_id"]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def command(*flags: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, SCRIPT, *flags], input=given, capture_output=True, timeout=60)


def refusal(code: int, *flags: str | Path, given: bytes = b"") -> str:
    result = command(*flags, given=given)
    assert result.returncode == code, result.stderr
    assert result.stdout == b""
    (line,) = result.stderr.decode().splitlines()
    return line


def test_rank_orders_by_score_and_tells_what_was_cut(client: RankingClient, reference: Reference) -> None:
    expected = reference(QUERY, [pair_encoding.Document(one.title, one.summary) for one in DOCUMENTS])
    ranked = client.rank(QUERY, DOCUMENTS)
    assert [found.rank for found in ranked] == [1, 2, 3, 4]
    assert [found.index for found in ranked] == np.argsort(-expected.scores).tolist()
    for found in ranked:
        assert found.score == pytest.approx(expected.scores[found.index], abs=1e-4)
        assert found.doc_id == (DOCUMENTS[found.index].doc_id or "3")
        assert found.title == DOCUMENTS[found.index].title
        assert found.truncated == (found.doc_id == "d9")
    assert client.rank(QUERY, DOCUMENTS, top_k=2) == ranked[:2]
    assert client.rank(QUERY, DOCUMENTS, top_k=9) == ranked


def test_documents_may_be_mappings_and_strings(client: RankingClient) -> None:
    expected = client.score(QUERY, [Document("", "river", "bridge"), Document("", "river bridge", "")])
    assert client.score(QUERY, [{"title": "river", "summary": "bridge", "url": "ignored"}, "river bridge"]) == expected
    assert expected[0] == expected[1]


def test_equal_scores_keep_the_callers_order(client: RankingClient) -> None:
    assert [found.index for found in client.rank(QUERY, ["river"] * 5)] == [0, 1, 2, 3, 4]


def test_a_lone_surrogate_is_what_it_is_in_training(client: RankingClient, reference: Reference) -> None:
    text = "river \ud83d bridge \ud83d\ude00"
    expected = reference(QUERY, [pair_encoding.Document(text, "")]).scores
    assert client.score(QUERY, [text]) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        (" ", ["river"], "the query is empty"),
        (QUERY, [], "no documents: a request has at least one"),
        (QUERY, "river", "a list of documents, not one string"),
        (3, ["river"], "the query must be a string, not int"),
        (QUERY, ["a", "b" * 1_000_001], "document 1 has 1000001 bytes"),
        (QUERY, [{"title": 3}], "'title' of a document must be a string, not int"),
    ],
)
def test_a_request_at_fault(client: RankingClient, query: str, documents: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        client.rank(query, documents)


def test_top_k_is_positive(client: RankingClient) -> None:
    with pytest.raises(InvalidRequestError, match="top_k must be at least 1, not 0"):
        client.rank(QUERY, DOCUMENTS, top_k=0)


def test_servers_that_do_not_answer(server: Server) -> None:
    nowhere = f"127.0.0.1:{ports()['grpc']}"
    with RankingClient(nowhere) as client, pytest.raises(ServerUnavailableError, match=f"answers at {nowhere}"):
        client.score(QUERY, DOCUMENTS)
    with RankingClient(server.url, "rerank") as client, pytest.raises(ModelNotReadyError, match="model 'rerank'"):
        client.score(QUERY, DOCUMENTS)
    with RankingClient(server.url, timeout_s=1e-4) as client, pytest.raises(RequestTimeoutError, match="within"):
        client.score(QUERY, DOCUMENTS)


def test_a_pipe_gets_json_lines(server: Server, client: RankingClient, file: Path) -> None:
    result = command("--query", QUERY, "--url", server.url, file)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.decode().splitlines()]
    ranked = client.rank(QUERY, DOCUMENTS)
    assert [one["score"] for one in found] == [one.score for one in ranked]
    assert {one["doc_id"] for one in found} == {"d7", "d8", "d9", "7"}  # the last by its line
    assert set(found[0]) == {"rank", "index", "doc_id", "score", "probability", "truncated", "title"}
    assert command("--query", QUERY, "--url", server.url, "-", given=file.read_bytes()).stdout == result.stdout


def test_a_terminal_gets_a_table(server: Server, file: Path) -> None:
    main_end, terminal = pty.openpty()
    flags = ["--query", QUERY, "--url", server.url, "--top_k", "3", str(file)]
    environment = {**os.environ, "COLUMNS": "60"}
    subprocess.run([sys.executable, SCRIPT, *flags], stdout=terminal, env=environment, check=True, timeout=60)
    os.close(terminal)
    lines = os.read(main_end, 10_000).decode().splitlines()
    os.close(main_end)
    assert lines[0].split() == ["rank", "score", "document", "title"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert all(len(line) <= 60 for line in lines)


def test_the_table_shows_summaries_of_untitled_documents_and_no_control_characters(server: Server) -> None:
    given = json.dumps({"doc_id": "d\u001b[31m", "summary": "winter\n\u001b[2J " + "long " * 300}).encode()
    flags = ["--query", QUERY, "--url", server.url, "--format", "table", "-"]
    (_, line) = command(*flags, given=given).stdout.decode().splitlines()
    assert "\x1b" not in line
    assert "winter" in line
    assert line.endswith("… (cut)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b'{"title": "a"}\n{oops\n', "error: stdin:2: not JSON"),
        (b'{"title": "a"}\n\n[]\n', "error: stdin:3: a JSON object with a title or a summary is needed"),
        (b'{"doc_id": "a"}', "error: stdin:1: a JSON object with a title or a summary is needed"),
        (b'{"title": "a"}\n{"title": "\xff"}', "error: stdin:2: not UTF-8"),
        (b'{"title": null}', "error: stdin:1: 'title' of a document must be a string, not NoneType"),
    ],
)
def test_a_bad_line_is_named(given: bytes, message: str) -> None:
    assert refusal(2, "--query", QUERY, "-", given=given).startswith(message)


def test_other_bad_input_is_one_line(server: Server, file: Path, tmp_path: Path) -> None:
    assert "none.jsonl: No such file" in refusal(2, "--query", QUERY, tmp_path / "none.jsonl")
    assert "the query is empty" in refusal(2, "--query", "", "--url", server.url, file)
    assert "no server answers at" in refusal(2, "--query", QUERY, "--url", f"127.0.0.1:{ports()['grpc']}", file)
    assert "does not serve the model" in refusal(2, "--query", QUERY, "--url", server.url, "--model", "other", file)


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
