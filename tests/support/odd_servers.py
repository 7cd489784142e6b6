"""Servers and connections that misbehave as told: a real gRPC server that speaks Triton's protocol, and a real TCP
proxy that cuts."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from client import wire

Reply = Callable[[int], np.ndarray[Any, Any]]
SCORER = "student"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, as a peer that died


class OddServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A ranker whose scores are ``reply(number of documents)``; it may be changed while it serves.

    ``limit`` is the documents of a request that it says it takes, 0 any number. ``authorization`` is the header of the
    last request.
    """

    def __init__(self, reply: Reply, limit: int = 0) -> None:
        self.reply, self.limit = reply, limit
        self.authorization: str | None = None

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == SCORER:
            config = model_config_pb2.ModelConfig(name=SCORER)
            if self.limit:
                config.parameters[wire.LIMIT].string_value = str(self.limit)
            return service_pb2.ModelConfigResponse(config=config)
        config = model_config_pb2.ModelConfig(name=request.name)
        for name in ("QUERY", "TITLES", "SUMMARIES"):
            config.input.add(name=name)
        for name in ("SCORES", "TRUNCATED"):
            config.output.add(name=name)
        config.ensemble_scheduling.step.add(model_name=SCORER)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.authorization = dict(context.invocation_metadata()).get("authorization")
        documents = request.inputs[1].shape[0]
        scores = self.reply(documents).astype(np.float32)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="SCORES", datatype="FP32", shape=scores.shape)
        answer.outputs.add(name="TRUNCATED", datatype="BOOL", shape=[documents])
        answer.raw_output_contents.extend([scores.tobytes(), bytes(documents)])
        return answer


class Service(OddServer):
    """Scores all with 0, once ``act`` has seen the call.

    ``sizes`` are the documents of each request that came; the next ``refusals`` requests get UNAVAILABLE.
    """

    def __init__(self, act: Callable[[Any], None] = lambda context: None, limit: int = 0) -> None:
        super().__init__(np.zeros, limit)
        self.act, self.sizes, self.refusals = act, list[int](), 0

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sizes.append(request.inputs[1].shape[0])
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        self.act(context)
        return super().ModelInfer(request, context)


def refusing(code: grpc.StatusCode, message: str, times: int = 10**6) -> Callable[[Any], None]:
    """For Service: the first ``times`` requests end with this error."""
    left = [times]

    def reply(context: Any) -> None:
        if left[0]:
            left[0] -= 1
            context.abort(code, message)

    return reply


@contextmanager
def odd_server(service: OddServer, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The address of its port; with ``credentials`` it speaks TLS only."""
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    at = "127.0.0.1:0"
    port = server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class CuttingProxy:
    """Between clients and ``upstream``; ``cuts`` connections that are left to be cut in the middle of a request."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # or a thread that waits for it stays there
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(*pair, pair[0] is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, of_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if of_client and self.cuts and len(data) > 1000:  # the body of a request, not a ping
                    self.cuts -= 1
                    target.sendall(data[: len(data) // 2])
                    for one in (source, target):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def cutting_proxy(upstream: str) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
