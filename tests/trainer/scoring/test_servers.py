"""Relabelling through a running server: the teacher's scores, each pair once, through kills and restarts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as grpc
from grpc import StatusCode

from client import Connection, RankingClient, ServerError, patience
from model_repository.tokenizer.pair_encoding import Document
from tests.support.checkpoints import tiny_llama, write_groups
from tests.support.odd_servers import OddServer, odd_server, refusing
from tests.support.requests import student_inputs
from tests.support.servers import STOP_S, Reference, Server, build, ports, running, starting, wait_until_ready
from tests.support.stages import finish, started, status_of
from tests.support.waiting import eventually
from trainer import score
from trainer.data.records import DataError, read_groups
from trainer.scoring.checkpoint import named_scores, progress
from trainer.scoring.servers import TeacherError, TritonScorer, teacher_of

TOLERANCE = 1e-4
# Of a teacher with a prompt, which stands for tokens and prefixes.
PROMPTED: dict[str, Any] = {
    "prompt": ("<s>Is it said?", "A: {query}\n", "B: {document}", "</s>Yes:"),
    **{"start_token": None, "end_token": None, "query_prefix": "", "document_prefix": ""},
}
SECOND_SHARD = "-000000008.parquet"  # of forty pairs, ten a query
SECRET = "a word that no message may hold"


@dataclass(frozen=True)
class Served:
    """A student and a teacher with a prompt in one repository, of other dimensions each, and a server of both."""

    student: Path
    teacher: Path
    pool: Path
    repository: Path
    server: Server

    def flags(self, output: Path, *more: object) -> list[object]:
        return ["--triton", self.server.url, "--data", self.pool, "--output", output, "--pairs_per_shard", 40, *more]


@pytest.fixture(scope="module")
def served(
    served_checkpoint: Path, served_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("teacher")
    size = {"row_length": 96, "slots_per_row": 6, "max_pair_tokens": 80, "max_documents": 20}
    teacher = tiny_llama(root / "llama", layers=1, **PROMPTED, **size)
    repository = shutil.copytree(served_repository, root / "model_repository")
    build(teacher, repository, "fp32", "--teacher")
    pool = write_groups(root / "pool.jsonl", queries=30, documents=10)
    with pool.open("a", encoding="utf-8") as file:  # above the teacher's limit, and of every kind
        texts = [{"doc_id": f"d{n}", "title": "中文 🚀" * (n % 3), "summary": "river \ud83d" * n} for n in range(45)]
        file.write(json.dumps({"query_id": "many", "query": "garden", "documents": texts}) + "\n")
    with running(repository, root / "log") as server:
        yield Served(served_checkpoint, teacher, pool, repository, server)


@pytest.fixture(scope="module")
def expected(served: Served, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The same pool in process."""
    output = tmp_path_factory.mktemp("in_process") / "scores.parquet"
    assert run("--model", served.teacher, "--data", served.pool, "--output", output) == 0
    return rows(output)


def run(*flags: object) -> int:
    return score.main([str(flag) for flag in flags])


def rows(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return found


def assert_same(got: list[dict[str, object]], expected: list[dict[str, object]]) -> None:
    """The same pairs in the same order, once each."""
    assert [(row["query_id"], row["doc_id"]) for row in got] == [(row["query_id"], row["doc_id"]) for row in expected]
    scores, wanted = (np.array([row["score"] for row in one], dtype=np.float32) for one in (got, expected))
    np.testing.assert_allclose(scores, wanted, atol=TOLERANCE, rtol=0)
    assert np.ptp(wanted) > 0.1  # or equality would say little


def test_student_and_teacher_are_served_side_by_side(served: Served) -> None:
    documents = [Document(title="bread", summary="market " * length) for length in range(20)]
    for model, checkpoint in (("ranker", served.student), ("teacher_ranker", served.teacher)):
        with RankingClient(served.server.url, model) as client:
            got = client.score("garden bridge", [asdict(document) for document in documents])
        np.testing.assert_allclose(got, Reference(checkpoint)("garden bridge", documents).scores, atol=TOLERANCE)


def test_scores_are_those_of_the_same_teacher_in_process(
    served: Served, expected: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is named twice and treated as two; answers overtake each other."""
    more = ["--triton", served.server.url, served.server.url, "--in_flight", 3]
    assert run(*served.flags(tmp_path / "scores.parquet"), *more) == 0
    got = rows(tmp_path / "scores.parquet")
    assert_same(got, expected)
    assert {row["teacher"] for row in got} == {"teacher version 1"}
    assert "345 of 345 pairs of 31 queries" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"scores.parquet"}


def test_a_kill_costs_the_shard_at_hand_and_another_teacher_is_refused(
    served: Served, expected: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = served.flags(tmp_path / "scores.parquet", "--in_flight", 1)
    assert finish("score", *flags, at=SECOND_SHARD) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".scores.parquet.shards/0*.parquet")}
    assert len(kept) == 1
    assert run(*flags, "--triton_model", "ranker") == 2
    assert "other settings (teacher: openvino in fp32 of checkpoint" in capsys.readouterr().err
    before = time.time_ns()
    assert finish("score", *flags, "--in_flight", 4) == 0  # which may change
    assert max(kept.values()) < before
    assert_same(rows(tmp_path / "scores.parquet"), expected)


def test_a_job_outlasts_a_restart_of_its_server(
    served: Served, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    free, alone = ports(), ("--model-control-mode=explicit", "--load-model=teacher_ranker")
    flags = served.flags(tmp_path / "scores.parquet", "--triton", f"127.0.0.1:{free['grpc']}", "--in_flight", 1)
    with starting(served.repository, tmp_path / "first", *alone, at=free) as server:
        wait_until_ready(server)
        process = started("score", *flags, at=SECOND_SHARD, send=signal.SIGSTOP)
        eventually(lambda: status_of(process.pid) == "T")
        server.process.terminate()
        server.process.wait(STOP_S)
    os.kill(process.pid or 0, signal.SIGCONT)
    with starting(served.repository, tmp_path / "second", *alone, at=free):
        process.join(300)
    assert process.exitcode == 0
    assert_same(rows(tmp_path / "scores.parquet"), expected)


def test_a_job_waits_for_a_server_that_is_broken_and_does_not_break_it_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    groups = read_groups(write_groups(tmp_path / "pool.jsonl", queries=1, documents=10))
    stub = StatusCode.INTERNAL, "Stub process 'teacher_0_0' is not healthy."
    service = OddServer(act=refusing(*stub, times=patience.BREAKS), limit=20)
    with (
        odd_server(service) as url,
        closing(TritonScorer([url], "ranker", 1, 60)) as scorer,
        progress("t", 10) as bar,
    ):
        assert len(list(scorer.scores(groups, bar))) == 10
        assert {one["priority"] for one in service.parameters} == {2}
        service.act, asked = refusing(*stub), len(service.sizes)
        with pytest.raises(ServerError, match=f"query '{groups[0].query_id}': {url}: INTERNAL: Stub process"):
            list(scorer.scores(groups, bar))
        assert len(service.sizes) == asked + patience.BREAKS + 1


def test_what_is_wrong_is_one_line(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = f"127.0.0.1:{ports()['grpc']}"
    cases: dict[str, list[object]] = {
        f"no server answers at {nobody}": ["--triton", nobody],
        f"{served.server.url} does not serve the model 'other_ranker'": ["--triton_model", "other_ranker"],
        f"the model 'teacher' of the server at {served.server.url} is no ranker": ["--triton_model", "teacher"],
        "--in_flight must be at least 1": ["--in_flight", 0],
        "give either --model": ["--model", served.teacher],
    }  # fmt: skip
    for message, flags in cases.items():
        assert run(*served.flags(tmp_path / "scores.parquet"), *flags) == 2
        assert message in one_error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_is_replaced_on_the_way_is_noticed(served: Served) -> None:
    """Before its scores are kept: a shard ends only after every server was asked. The student is another teacher."""
    url = served.server.url
    groups = read_groups(served.pool)[:3]
    with closing(TritonScorer([url], "teacher_ranker", 2, 60)) as scorer, progress("t", 30) as bar:
        assert len(list(scorer.scores(groups, bar))) == 30
        scorer.name, scorer.identity = teacher_of(Connection((url,), "ranker"), url)
        message = rf"{url} has another teacher: teacher version 1 \(openvino in fp32 .* instead of student version 1 "
        with pytest.raises(TeacherError, match=message):
            list(scorer.scores(groups, bar))


def test_a_document_that_the_teacher_refuses_is_named_and_not_quoted(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [{"doc_id": f"d{n}", "title": "", "summary": SECRET * (40_000 if n == 33 else 1)} for n in range(40)]
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"query_id": "q7", "query": SECRET, "documents": documents}), encoding="utf-8")
    assert run(*served.flags(tmp_path / "scores.parquet"), "--data", pool) == 2
    message = one_error(capsys)
    assert "query 'q7', document 'd33': " in message
    assert "has 1240000 bytes; at most 1000000 are taken" in message
    assert SECRET not in message
    assert not (tmp_path / "scores.parquet").exists()


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    return errors[0]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="t: query 'q', document 'e': the score is nan"):
        list(named_scores("t", [("q", "d"), ("q", "e")], [0.5, float("nan")]))


def test_a_teachers_errors_bear_its_name(served: Served) -> None:
    with (
        grpc.InferenceServerClient(served.server.url) as raw,
        pytest.raises(grpc.InferenceServerException, match="teacher: a pair has 1 to 96 tokens, not 97"),
    ):
        raw.infer("teacher", student_inputs([97]))
