"""Triton's counters, from its Prometheus endpoint."""

from __future__ import annotations

import pytest

from loadtest._records import ModelTimes
from loadtest._triton_metrics import MetricsError, between, default_url, parse, read_counters
from tests.support.servers import Server, ports

TEXT = """
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="student",version="1"}} {requests}
nv_inference_request_success{{model="student",version="2"}} {requests}
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{{model="student",version="1"}} {batches}
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{{model="student",version="1"}} {queue}
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{{model="student",version="1"}} {compute}
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{{model="student",version="1"}} 500
# TYPE disranker_document_cache_hits counter
disranker_document_cache_hits{{process="1"}} 7
"""


def test_means_are_over_what_was_answered_between_two_looks() -> None:
    before = parse(TEXT.format(requests=10, batches=10, queue=1_000, compute=5_000))
    after = parse(TEXT.format(requests=60, batches=60, queue=51_000, compute=405_000))
    # Two versions: 2 * 50 requests in 50 batches; 50 ms in the queue and 400 ms of work, all together.
    assert between(before, after) == (ModelTimes("student", 100, queue_ms=0.5, compute_ms=4.0, requests_per_batch=2.0),)


def test_a_model_that_answered_nothing_is_left_out() -> None:
    counters = parse(TEXT.format(requests=10, batches=10, queue=1_000, compute=5_000))
    assert between(counters, counters) == ()
    assert between(counters, {}) == ()


def test_a_running_server_has_them(server: Server) -> None:
    assert {"ranker", "tokenizer", "student", "scores"} <= set(read_counters(server.metrics_url))


def test_other_addresses_are_refused(server: Server) -> None:
    with pytest.raises(MetricsError, match="no metrics at http"):
        read_counters(f"http://127.0.0.1:{ports()['http']}/metrics")
    with pytest.raises(MetricsError, match="no metrics of Triton's models at http"):
        read_counters(server.metrics_url.replace("/metrics", "/nothing"))
    with pytest.raises(MetricsError, match="no metrics at"):
        read_counters("no address")


def test_the_usual_place_is_the_first_servers_port_8002() -> None:
    assert default_url("gpu1:8001,gpu2:8001") == "http://gpu1:8002/metrics"
    assert default_url("localhost:9001") == "http://localhost:8002/metrics"
