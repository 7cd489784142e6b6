"""The running ensemble against PyTorch, whatever is sent to it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from client import RankingClient
from engines.repository.configs import read_config, written
from model_repository.student.runtime.graphs import cores
from model_repository.student.runtime.openvino_engine import core
from model_repository.tokenizer.pair_encoding import Document
from tests.support.checkpoints import TEXT, tiny_bert
from tests.support.requests import TOLERANCES, answer, assert_equal, documents, strings
from tests.support.servers import READY_S, STOP_S, Reference, Server, build, running, starting

SECRET = "a word that no log may hold"


@pytest.fixture
def client(server: Server) -> RankingClient:
    return RankingClient(server.url)


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_scores_are_those_of_pytorch(client: RankingClient, reference: Reference, count: int) -> None:
    candidates = documents(count, seed=count)
    expected = reference("garden bridge", candidates)
    assert_equal(answer(client, "garden bridge", candidates), expected)
    assert count < 10 or np.ptp(expected.scores) > 0.1  # or equality would say little


@pytest.mark.parametrize("query", ["中文 查询", "🚀", "river " * 100, "[SEP]", "a\x00b", "\ud83d"])
def test_queries_of_every_kind(client: RankingClient, reference: Reference, query: str) -> None:
    candidates = documents(7)
    assert_equal(answer(client, query, candidates), reference(query, candidates))


def test_documents_of_every_length(client: RankingClient, reference: Reference) -> None:
    row = reference.encoder.config.row_length
    candidates = [Document(title="", summary="river " * tokens) for tokens in range(row + 10)]
    lengths = {len(pair.token_ids) for pair in reference.encoder.encode("garden", candidates)}
    assert lengths == set(range(4, row + 1))  # the template and the query are four
    assert_equal(answer(client, "garden", candidates), reference("garden", candidates))


def test_a_thousand_documents_that_fill_a_row_each(client: RankingClient, reference: Reference) -> None:
    words = TEXT.split()
    candidates = [
        Document(title=f"{words[n % 30]} {words[n // 30 % 30]}", summary="market " * 260) for n in range(1000)
    ]
    expected = reference("garden", candidates)
    assert all(expected.truncated)
    assert_equal(answer(client, "garden", candidates), expected)


def test_many_connections_are_joined_and_each_gets_its_own(server: Server, reference: Reference) -> None:
    """Some hundred requests, which an engine of two streams did not outlive."""
    requests = [documents(count, longest=60, seed=count) for count in (1, 2, 3, 5, 7, 8, 13, 33)]

    def ask(connection: int) -> None:
        with RankingClient(server.url) as client:
            for candidates in (requests * 5)[connection % 8 :]:
                assert_equal(answer(client, "silver forest", candidates), reference("silver forest", candidates))

    for candidates in requests:
        reference("silver forest", candidates)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


BAD = {
    "no documents": ([b"q"], [], [], "TITLES has 0 elements"),
    "too many documents": ([b"q"], [b"t"] * 1001, [b"s"] * 1001, "TITLES has 1001 elements; a request takes 1 to 1000"),
    "fewer summaries": ([b"q"], [b"t", b"u"], [b"s"], "TITLES has 2 elements and SUMMARIES 1"),
    "empty query": ([b" \t"], [b"t"], [b"s"], "the query is empty"),
    "two queries": ([b"q", b"r"], [b"t"], [b"s"], r"shape for input 'QUERY'.*Expected \[1\], got \[2\]"),
    "no query": ([], [b"t"], [b"s"], r"shape for input 'QUERY'.*Expected \[1\], got \[0\]"),
    "a matrix of titles": ([b"q"], [[b"t"]], [b"s"], "shape for input 'TITLES'"),
    "a query that is not UTF-8": ([b"\xff"], [b"t"], [b"s"], r"QUERY\[0\] is not UTF-8: invalid start byte at byte 0"),
    "a title that is not UTF-8": ([b"q"], [b"t", b"u\xe4"], [b"s", b"s"], r"TITLES\[1\] is not UTF-8"),
    "a surrogate in bytes": ([b"q"], [b"t"], [b"\xed\xa0\x80"], r"SUMMARIES\[0\] is not UTF-8"),
    "a document too large": ([b"q"], [b"t", b"t"], [b"s", b"s" * 1_000_001], "document 1 has 1000003 bytes"),
    "a query too large": ([b"q" * 1_000_001], [b"t"], [b"s"], "the query has 1000001 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_fails_alone(server: Server, client: RankingClient, reference: Reference, case: str) -> None:
    query, titles, summaries, message = BAD[case]
    candidates = documents(20)
    with ThreadPoolExecutor(3) as pool, grpc.InferenceServerClient(server.url) as raw:
        bad = pool.submit(raw.infer, "ranker", strings(QUERY=query, TITLES=titles, SUMMARIES=summaries))
        good = [pool.submit(answer, RankingClient(server.url), "garden", candidates) for _ in range(2)]
        with pytest.raises(grpc.InferenceServerException, match=message) as caught:
            bad.result()
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        for got in good:
            assert_equal(got.result(), reference("garden", candidates))
    assert_equal(answer(client, "garden", candidates), reference("garden", candidates))


def test_other_mistakes_are_named(server: Server) -> None:
    with grpc.InferenceServerClient(server.url) as raw:
        with pytest.raises(grpc.InferenceServerException, match=r"missing required input\(s\) \['SUMMARIES'\]"):
            raw.infer("ranker", strings(QUERY=[b"q"], TITLES=[b"t"]))
        number = grpc.InferInput("QUERY", [1], "INT32")
        number.set_data_from_numpy(np.zeros(1, dtype=np.int32))
        with pytest.raises(grpc.InferenceServerException, match="'QUERY' data-type is 'INT32'"):
            raw.infer("ranker", [number, *strings(TITLES=[b"t"], SUMMARIES=[b"s"])])


def test_the_log_holds_no_text(server: Server, client: RankingClient) -> None:
    client.score(SECRET, [SECRET])
    with grpc.InferenceServerClient(server.url) as raw:
        for inputs in (
            strings(QUERY=[SECRET.encode()], TITLES=[SECRET.encode()], SUMMARIES=[]),
            strings(QUERY=[SECRET.encode() + b"\xff"], TITLES=[SECRET.encode()], SUMMARIES=[b""]),
        ):
            with pytest.raises(grpc.InferenceServerException) as caught:
                raw.infer("ranker", inputs)
            assert SECRET not in str(caught.value)
    assert SECRET not in server.log.read_text()


def test_bf16_other_dimensions_and_two_instances(tmp_path: Path) -> None:
    """Scores are as close as the rounding of what the processor computes in allows: bf16 with units for it, float32
    without. The order of drawn weights says little, since bf16 scores of them tie."""
    checkpoint = tiny_bert(tmp_path / "bert")  # rows of 64 tokens with 4 slots, 40 documents
    repository = build(checkpoint, tmp_path / "model_repository", "bf16")
    runs_in = json.loads((repository / "student/1/manifest.json").read_text())["runs_in"]
    assert runs_in == ("bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32")
    config = repository / "student/configs/cpu.pbtxt"
    parsed = read_config(config)
    parsed.instance_group[0].count = 2
    config.write_bytes(written(parsed))
    expected = Reference(checkpoint)
    with running(repository, tmp_path / "log") as server, RankingClient(server.url) as client:
        for seed in range(5):
            candidates = documents(40, longest=30, seed=seed)
            got, wanted = answer(client, "garden bridge", candidates), expected("garden bridge", candidates)
            assert got.truncated == wanted.truncated
            np.testing.assert_allclose(got.scores, wanted.scores, atol=TOLERANCES[runs_in], rtol=0)
    assert server.log.read_text().count(f", {max(1, cores() // 2)} threads, ") == 2


def test_the_tokenizer_refuses_a_student_built_for_another_encoding(served_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(served_repository, tmp_path / "model_repository")
    shutil.copytree(repository / "student/1", repository / "student/10")  # newer than 9 and 1, and not by its name
    manifest = repository / "student/10/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "encoding_hash": "0" * 64}))
    with starting(repository, tmp_path / "log") as refused:
        assert refused.process.wait(READY_S + STOP_S) != 0  # 1, or 139 where Triton crashes while it unloads the rest
    assert "student version 10 was built for another tokenizer or other encoding settings" in refused.log.read_text()


def test_a_tokenizer_that_sees_no_student_says_so_and_serves(served_repository: Path, tmp_path: Path) -> None:
    shutil.copytree(served_repository / "tokenizer", tmp_path / "model_repository/tokenizer")
    with running(tmp_path / "model_repository", tmp_path / "log") as server:
        assert "no student lies beside this tokenizer" in server.log.read_text()
