"""A real gRPC server that speaks Triton's protocol and misbehaves as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from client import wire
from tests.support.waiting import PATIENCE_S

Reply = Callable[[int], np.ndarray[Any, Any]]
Act = Callable[[Any], None]
SCORER = "student"


class OddServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A ranker whose scores are ``reply(number of documents)``, once ``act`` has seen the call's context.

    Both may be changed while it serves. ``limit`` is the documents of a request that it says it takes, 0 any number.
    It tells times of ``more_parts`` parts more than a client knows.
    ``sizes`` are the documents of each request that came, ``parameters`` those of Triton that each had, and
    ``authorization`` is the header of the last one, ``metadata`` are all its headers, ``id`` is Triton's id of it.
    """

    def __init__(self, reply: Reply = np.zeros, act: Act = lambda context: None, limit: int = 0) -> None:
        self.reply, self.act, self.limit, self.sizes = reply, act, limit, list[int]()
        self.authorization: str | None = None
        self.metadata, self.id = dict[str, Any](), ""
        self.parameters = list[dict[str, int]]()
        self.more_parts = 0

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == SCORER:
            config = model_config_pb2.ModelConfig(name=SCORER)
            if self.limit:
                config.parameters[wire.LIMIT].string_value = str(self.limit)
            return service_pb2.ModelConfigResponse(config=config)
        config = model_config_pb2.ModelConfig(name=request.name)
        for name in wire.INPUTS:
            config.input.add(name=name)
        for name in wire.OUTPUTS:
            config.output.add(name=name)
        config.ensemble_scheduling.step.add(model_name=SCORER)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.metadata, self.id = dict(context.invocation_metadata()), request.id
        self.authorization = self.metadata.get("authorization")
        documents = request.inputs[1].shape[0]
        self.sizes.append(documents)
        given = request.parameters.items()
        self.parameters.append({name: value.int64_param or value.uint64_param for name, value in given})
        self.act(context)
        scores = self.reply(documents).astype(np.float32)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="SCORES", datatype="FP32", shape=scores.shape)
        answer.outputs.add(name="TRUNCATED", datatype="BOOL", shape=[documents])
        answer.raw_output_contents.extend([scores.tobytes(), bytes(documents)])
        if "times" in request.parameters:
            for name, parts in wire.PARTS.items():
                count = len(parts) + self.more_parts
                answer.outputs.add(name=name, datatype="FP32", shape=[count])
                answer.raw_output_contents.append(np.arange(count, dtype=np.float32).tobytes())
        return answer


class Held:
    """For an OddServer's ``act``: holds each request after the first ``free`` ones until its caller leaves.

    ``release`` lets all go on. ``held`` is set when one is held, ``gone`` when a caller has left.
    """

    def __init__(self, free: int = 0) -> None:
        self.held, self.gone, self._free = threading.Event(), threading.Event(), free
        self._changed, self._released = threading.Condition(), False

    def __call__(self, context: Any) -> None:
        self._free -= 1
        if self._free < 0:
            if not context.add_callback(self._left):
                self._left()
            self.held.set()
            with self._changed:
                self._changed.wait_for(lambda: self._released or not context.is_active(), PATIENCE_S)

    def release(self) -> None:
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def _left(self) -> None:
        self.gone.set()
        with self._changed:
            self._changed.notify_all()


def refusing(code: grpc.StatusCode, message: str, times: int = 10**6) -> Act:
    """For an OddServer's ``act``: the first ``times`` requests end with this error."""
    left = [times]

    def reply(context: Any) -> None:
        if left[0]:
            left[0] -= 1
            context.abort(code, message)

    return reply


@contextmanager
def odd_server(
    service: OddServer, credentials: grpc.ServerCredentials | None = None, at: str = "127.0.0.1:0"
) -> Iterator[str]:
    """The address of its port; with ``credentials`` it speaks TLS only."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
