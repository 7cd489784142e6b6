"""More than can be scored, on the running server: who is refused at once, who is dropped, who goes first."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from client import Connection
from engines.repository.configs import read_config, written
from engines.repository.control import RunningServer
from engines.repository.models import STUDENT
from engines.repository.place import Place
from model_repository.tokenizer.pair_encoding import Document, FloatArray
from tests.support.gated import gated
from tests.support.requests import strings, student_inputs
from tests.support.servers import Reference, Server, metric, running
from tests.support.waiting import PATIENCE_S, eventually

LARGE, SMALL = 1000, 10  # documents
HELD_S = 3.0
BATCH: dict[str, Any] = {"priority": 2, "parameters": {"priority_level": 2}}


class Asking:
    """Callers of a server whose requests can be told apart by their documents' only word."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __call__(self, word: str, documents: int, timeout_s: float = 0.0, **more: Any) -> FloatArray:
        texts = [f"{word} {word}".encode()] * documents
        inputs = strings(QUERY=[b"q"], TITLES=texts, SUMMARIES=texts)
        with grpc.InferenceServerClient(self._server.url) as raw:
            result = raw.infer("ranker", inputs, timeout=int(timeout_s * 1e6) or None, **more)
        scores: FloatArray = result.as_numpy("SCORES")
        assert len(scores) == documents
        return scores

    def has_come(self, count: int) -> None:
        """Wait until the student has been given so many requests."""
        with grpc.InferenceServerClient(self._server.url) as raw:
            eventually(lambda: raw.get_inference_statistics("student").model_stats[0].execution_count == count)

    def is_refused_by_the_tokenizer(self) -> bool:
        """Ask for what is refused anyway; whether the tokenizer has refused something so far."""
        with unavailable(r"waits for the engine: retry in \d+\.\d\d s"):
            self("harbor", SMALL)
        return metric(self._server.metrics_url, "disranker_requests_refused", model="tokenizer") > 0


def unavailable(message: str) -> Any:
    return pytest.raises(grpc.InferenceServerException, match=rf"StatusCode.UNAVAILABLE\] .*{message}")


def test_who_is_refused_who_is_dropped_and_who_goes_first(
    served_repository: Path, reference: Reference, tmp_path: Path
) -> None:
    repository, gate = gated(served_repository, tmp_path)
    config = repository / "student/configs/cpu.pbtxt"
    parsed = read_config(config)
    parsed.parameters["max_wait_s"].string_value = "1"
    config.write_bytes(written(parsed))
    with running(repository, tmp_path / "log") as server, ThreadPoolExecutor(4) as pool:
        ask = Asking(server)
        gate.close()
        large = pool.submit(ask, "river", LARGE)
        gate.wait()
        # No call has ended yet: the speed is not known, and all are accepted.
        late = pool.submit(ask, "harbor", SMALL, timeout_s=HELD_S)
        job = pool.submit(ask, "winter", SMALL, **BATCH)
        ask.has_come(3)
        person = pool.submit(ask, "market", 40 * SMALL)
        ask.has_come(4)
        time.sleep(HELD_S)
        gate.open()
        with unavailable("past its deadline"):
            late.result()
        for asked in (large, job, person):
            asked.result()
        river, harbor, winter, market = (_calls_with(word, gate.calls(), reference) for word in WORDS)
        assert river and not harbor, "nobody waited for it any more"
        assert len(market) > 1 and winter[0] >= market[-1], "though it is smaller and came earlier"

        gate.close()
        large = pool.submit(ask, "river", LARGE, timeout_s=PATIENCE_S)
        gate.wait()
        time.sleep(HELD_S)  # a call that takes so long is taken to last as long again
        patient = pool.submit(ask, "winter", SMALL, timeout_s=PATIENCE_S)
        eventually(ask.is_refused_by_the_tokenizer)  # each of its processes has to know how long documents are
        assert not patient.done() and len(gate.calls()) == 1, "refused at once"
        with unavailable("waits for the engine: retry in"):
            ask("harbor", SMALL)
        with RunningServer(Connection((server.url,), timeout_s=PATIENCE_S), Place.of(repository, STUDENT)) as switched:
            switched.check_tokenizer()  # by which a new version begins
        gate.open()
        large.result()
        patient.result()
        ask("harbor", SMALL, timeout_s=60.0)
        eventually(lambda: server.metrics("disranker_requests_dropped") == 1)


WORDS = ("river", "harbor", "winter", "market")


def _calls_with(word: str, calls: list[set[int]], reference: Reference) -> list[int]:
    """The places of the calls that had documents of this word."""
    (token, *_) = reference.encoder.document_ids([Document(title=word, summary="")]).token_ids.tolist()
    return [place for place, ids in enumerate(calls) if token in ids]


@pytest.mark.parametrize("level", ["3", 0, "urgent"])
def test_a_priority_that_does_not_exist_is_the_callers_fault(server: Server, level: str | int) -> None:
    with pytest.raises(grpc.InferenceServerException, match=f"priority_level is 1 or 2, not '{level}'") as caught:
        Asking(server)("river", SMALL, parameters={"priority_level": level})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("urgency", "status", "message"),
    [
        ([3.0, math.inf], "INVALID_ARGUMENT", "urgency is a priority"),
        ([1.0, math.nan], "INVALID_ARGUMENT", "urgency is a priority"),
        ([1.0, 0.0], "UNAVAILABLE", "past its deadline"),
    ],
)
def test_an_urgency_that_no_tokenizer_hands_on_fails_alone(
    server: Server, urgency: list[float], status: str, message: str
) -> None:
    """Sent to the student itself, which takes pairs without one too."""
    tensor = grpc.InferInput("urgency", [2], "FP64")
    tensor.set_data_from_numpy(np.array(urgency))
    with grpc.InferenceServerClient(server.url) as raw:
        with pytest.raises(grpc.InferenceServerException, match=rf"StatusCode.{status}\] .*{message}"):
            raw.infer("student", [*student_inputs([3]), tensor])
        assert len(raw.infer("student", student_inputs([3])).as_numpy("SCORES")) == 1


def test_an_urgency_does_not_stand_for_the_pairs(server: Server) -> None:
    """Triton only counts inputs where some are optional."""
    tensor = grpc.InferInput("urgency", [2], "FP64")
    tensor.set_data_from_numpy(np.array([1.0, math.inf]))
    with grpc.InferenceServerClient(server.url) as raw:
        for left_out, name in enumerate(("token_ids", "lengths", "document_starts")):
            inputs = [*student_inputs([3]), tensor]
            del inputs[left_out]
            with pytest.raises(grpc.InferenceServerException, match=rf"INVALID_ARGUMENT\] .*{name} is missing"):
                raw.infer("student", inputs)
