"""The configuration for production, as far as the embedded Triton can check it: all but TensorRT and the GPU.

The scheduler, the warm-up and the version policy are Triton's own, so they are tried with a student on the processor.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from client import RankingClient
from engines.records import Dimensions
from engines.repository.configs import read_config
from model_repository.tokenizer.pair_encoding import INPUTS
from tests import ROOT
from tests.support.requests import answer, assert_equal, by_ids, documents
from tests.support.servers import Reference, Server, running
from tests.support.waiting import eventually

TRACKED = Dimensions(row_length=256, slots_per_row=16, max_rows=1000)
ROWS = 600  # more than half of what may run at a time, so that requests wait for each other
HELD = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        rows = [len(pb_utils.get_input_tensor_by_name(request, "pool_positions").as_numpy()) for request in requests]
        with Path(__file__).with_name("calls").open("a") as calls:
            print(*rows, file=calls)
        while ROWS in rows and not Path(__file__).with_name("released").exists():
            time.sleep(0.01)
        zeros = (np.zeros((count, 16), dtype=np.float32) for count in rows)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores)]) for scores in zeros]
"""


def on_the_processor(config: ModelConfig) -> ModelConfig:
    """The same in the Python backend: without what is TensorRT's."""
    changed = ModelConfig()
    changed.CopyFrom(config)
    changed.platform, changed.backend = "", "python"
    changed.ClearField("default_model_filename")
    changed.ClearField("cc_model_filenames")
    changed.ClearField("optimization")
    changed.dynamic_batching.default_queue_policy.max_queue_size = 2  # of each priority
    for group in changed.instance_group:
        group.count, group.kind = 1, ModelInstanceGroup.KIND_CPU
    return changed


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return on_the_processor(read_config(ROOT / "model_repository/student/config.pbtxt"))


def test_triton_takes_the_scheduler_and_refuses_what_is_too_much(production: ModelConfig, tmp_path: Path) -> None:
    student = tmp_path / "model_repository/student"
    (student / "1").mkdir(parents=True)
    (student / "config.pbtxt").write_text(text_format.MessageToString(production))
    (student / "1/model.py").write_text(HELD.replace("ROWS", str(ROWS)))
    shutil.copytree(student / "1", student / "2")
    with running(student.parent, tmp_path / "log") as server, grpc.InferenceServerClient(server.url) as client:
        assert [client.is_model_ready("student", version) for version in "12"] == [False, True]
        config = client.get_model_config("student").config
        assert list(config.dynamic_batching.preferred_batch_size) == [8, 16, 32, 64]
        assert [warmup.name for warmup in config.model_warmup] == [warmup.name for warmup in production.model_warmup]
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, server) for _ in range(12)]
            first = next(as_completed(asked)).result()
            (student / "2/released").touch()
            outcomes = {each.result() for each in asked}
    assert first == "StatusCode.UNAVAILABLE", "refused while the others still wait"
    assert outcomes == {"scored", "StatusCode.UNAVAILABLE"}


def test_triton_keeps_to_priorities_and_timeouts(production: ModelConfig, tmp_path: Path) -> None:
    version = tmp_path / "model_repository/student/1"
    version.mkdir(parents=True)
    config = ModelConfig()
    config.CopyFrom(production)
    config.ClearField("model_warmup")
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 10**9  # a busy machine is no failure
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    (version / "model.py").write_text(HELD.replace("ROWS", str(ROWS)))
    with running(tmp_path / "model_repository", tmp_path / "log") as server, ThreadPoolExecutor(4) as pool:
        asked = {"held": pool.submit(ask, server)}
        eventually((version / "calls").exists)
        for count, (name, settings) in enumerate(
            {"job": {"priority": 2}, "person": {}, "late": {"timeout": 1000}}.items()
        ):
            eventually(partial(_wait, server, count))
            asked[name] = pool.submit(ask, server, ROWS + 1 + count, **settings)
        eventually(lambda: asked["late"].done() or _wait(server, 3))
        time.sleep(0.01)  # more than it waits
        (version / "released").touch()
        outcomes = {name: each.result() for name, each in asked.items()}
    assert outcomes == {**dict.fromkeys(asked, "scored"), "late": "StatusCode.UNAVAILABLE"}
    assert (version / "calls").read_text().split() == [str(ROWS), str(ROWS + 2), str(ROWS + 1)]


def _wait(server: Server, count: int) -> bool:
    return server.metrics("nv_inference_pending_request_count") == count


def ask(server: Server, rows: int = ROWS, **settings: int) -> str:
    """The outcome of a request for which others must wait."""
    inputs = []
    for name in INPUTS:
        width = TRACKED.width(name)
        assert width is not None
        inputs.append(grpc.InferInput(name, [rows, width], "INT32"))
        inputs[-1].set_data_from_numpy(np.zeros((rows, width), dtype=np.int32))
    with grpc.InferenceServerClient(server.url) as client:
        try:
            client.infer("student", inputs, **settings)
        except grpc.InferenceServerException as error:
            return str(error.status())
    return "scored"


PLAN = """
from pathlib import Path
import triton_python_backend_utils as pb_utils
from runtime.openvino_engine import OpenVinoEngine
from runtime.packing import INPUTS

class TritonPythonModel:
    def initialize(self, args):
        version = Path(args["model_repository"]) / args["model_version"]
        self.graph = OpenVinoEngine(version / "model.xml", "fp32", 1)

    def execute(self, requests):
        rows = [tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)
                for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", self.graph.infer(each))]) for each in rows]
"""


def test_packed_rows_go_to_a_plan_and_scores_come_out_of_their_slots(
    production: ModelConfig, served_repository: Path, reference: Reference, tmp_path: Path
) -> None:
    """The ensembles for TensorRT, with a model on the processor that takes packed rows in the plan's place."""
    repository = Path(shutil.copytree(served_repository, tmp_path / "model_repository"))
    for model in ("student", "ranker", "ranker_tokens"):
        shutil.rmtree(repository / model / "configs")
    config = ModelConfig()
    config.CopyFrom(production)
    config.ClearField("model_warmup")
    config.dynamic_batching.ClearField("default_queue_policy")  # a busy machine may take longer than a second
    (repository / "student/config.pbtxt").write_text(text_format.MessageToString(config))
    (repository / "student/1/model.py").write_text(PLAN)
    candidates = documents(60)
    with running(repository, tmp_path / "log") as server:
        with RankingClient(server.url) as client:
            assert client.document_limit() == 1000
            assert_equal(answer(client, "garden bridge", candidates), reference("garden bridge", candidates))
        ids = reference.encoder.document_ids(candidates)
        assert_equal(by_ids(server, "garden bridge", ids), reference("garden bridge", candidates))
