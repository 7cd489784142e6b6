"""The times inside the server, by Triton's statistics."""

from __future__ import annotations

from typing import Any

from client import RankingClient
from client.statistics import spent_by_model
from loadtest._records import ModelTimes
from loadtest._server import Statistics, between
from tests.support.clients import DOCUMENTS, QUERY
from tests.support.servers import Server, ports
from tests.support.waiting import eventually


def answer(requests: int, batches: int, queue_ms: int, compute_ms: int) -> dict[str, Any]:
    """Statistics of two versions, as tritonclient's JSON has them: int64 is text, and what is 0 is left out."""
    times = {"queue": queue_ms, "compute_infer": compute_ms}
    figures = {name: {"count": str(requests), "ns": str(10**6 * time)} for name, time in times.items()}
    version = {"name": "student", "inference_stats": {"success": {"count": str(requests)}, **figures}}
    return {"model_stats": [{**version, "version": "1", "execution_count": str(batches)}, {**version, "version": "2"}]}


def test_means_are_over_what_was_answered_between_two_looks() -> None:
    before, after = spent_by_model([answer(10, 10, 1, 5)]), spent_by_model([answer(60, 60, 26, 205)])
    # Two versions: 2 * 50 requests in 50 batches; 2 * 25 ms in the queue and 2 * 200 ms of work.
    assert between(before, after) == (ModelTimes("student", 100, queue_ms=0.5, compute_ms=4.0, requests_per_batch=2.0),)
    assert between(after, after) == between(after, {}) == ()  # a model that answered nothing is left out


def test_a_running_server_tells_them(server: Server) -> None:
    statistics = Statistics([server.url])
    before = statistics.look()
    with RankingClient(server.url) as client:
        client.score(QUERY, DOCUMENTS)

    def found() -> dict[str, ModelTimes]:
        return {times.model: times for times in between(before, statistics.look())}

    eventually(lambda: {"ranker", "tokenizer", "student"} <= set(found()))  # Triton counts a request after its answer
    assert found()["ranker"].requests_per_batch == 1 and found()["tokenizer"].compute_ms > 0


def test_one_that_does_not_answer_is_noted_and_asked_once() -> None:
    statistics = Statistics([f"127.0.0.1:{ports()['grpc']}"])
    assert statistics.look() == statistics.look() == {}
    assert "no statistics of the models: " in statistics.note


def test_one_that_does_not_answer_hides_no_others_versions(server: Server) -> None:
    statistics = Statistics([f"127.0.0.1:{ports()['grpc']}", server.url])
    assert statistics.look() == {}
    ((url, versions),) = statistics.versions().items()
    assert url == server.url and versions.startswith("triton 2.") and "ranker 1" in versions
