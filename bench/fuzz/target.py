"""A server that is sent odd requests, each beside a request whose answer is known."""

from __future__ import annotations

import http.client
import re
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.children import healthy
from client import Document, wire
from model_repository.tokenizer.pair_encoding import Document as Text
from model_repository.tokenizer.pair_encoding import EncodingError, PairEncoder

PATIENCE_S = 120.0  # on a machine that has other work
SECRET = "marzipanweasel"  # a word of the known request, which no other answer and no log may hold
# No answer may hold words of a Python program or paths of the server's machine. No case names a path itself.
INTERNALS = re.compile(r"Traceback|\.py\b|\nAt:|(?<![\w.:/])/(?!v\d|rerank)[\w.-]+/[\w.-]+")
REFUSED = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED")
CANARY = [Document(title=SECRET, summary="garden bridge"), Document(title="river"), Document(summary="silver " * 50)]


class Target:
    """A Triton with the student's models and its process, and perhaps a gateway before it. Close it.

    ``tolerance`` is by how much a score may differ with what shares the engine's call, logits.
    """

    def __init__(self, pid: int, grpc_url: str, http_url: str, gateway: str, encoder: PairEncoder, tolerance: float):
        self._channel = grpc.insecure_channel(grpc_url, [("grpc.max_receive_message_length", -1)])
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._ports = {"triton": urlsplit(http_url).port or 0, "gateway": urlsplit(gateway).port or 0}
        self._process, self._encoder, self._tolerance = psutil.Process(pid), encoder, tolerance
        self._canary = service_pb2.ModelInferRequest(model_name="ranker")
        for tensor in wire.inputs(SECRET, CANARY).tensors:
            self._canary.inputs.append(tensor._get_tensor())
            self._canary.raw_input_contents.append(tensor._get_content())
        self._family = self._processes()
        self._known = self._scores(self._triton.ModelInfer(self._canary, timeout=PATIENCE_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def infer(self, request: Any) -> None:
        """Send a ModelInferRequest. Raises AssertionError where the server does what it must not."""
        beside = self._triton.ModelInfer.future(self._canary, timeout=PATIENCE_S)
        try:
            answer = self._triton.ModelInfer(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            self._check_refusal(error)
        else:
            assert SECRET.encode() not in answer.SerializeToString()
        self._check_canary(beside)

    def rerank(self, asked: tuple[str, bytes]) -> None:
        """Send a body to the gateway. Raises AssertionError as above."""
        status, body = self._post("gateway", *asked)
        assert status < 500, body

    def infer_json(self, asked: tuple[str, bytes]) -> None:
        """Send a body to Triton's HTTP endpoint, which answers 500 to some of what it cannot read."""
        self._post("triton", *asked)

    def encode(self, texts: list[tuple[str, str]]) -> None:
        """Lay out documents in rows, in this process. Raises AssertionError unless each token lies there once."""
        try:
            pairs = self._encoder.encode("".join(texts[0]), [Text(title=one, summary=two) for one, two in texts])
        except EncodingError:
            return
        batch = self._encoder.pack(pairs)
        laid = batch.input_ids.reshape(-1)
        for pair, start in zip(pairs, batch.starts.tolist(), strict=True):
            np.testing.assert_array_equal(laid[start : start + len(pair.token_ids)], pair.token_ids)
        assert np.count_nonzero(batch.segment_ids) == len(pairs.token_ids)
        assert len({*batch.slots.tolist()}) == len(pairs)

    def check_alive(self) -> None:
        """Raises AssertionError if a process of the server died, or if it is not ready."""
        assert self._processes() == self._family, "a process of the server died"
        assert healthy(self._ports["triton"]), "the server is not ready"

    def _post(self, host: str, path: str, body: bytes) -> tuple[int, str]:
        beside = self._triton.ModelInfer.future(self._canary, timeout=PATIENCE_S)
        # A new one each time: a kept one may have been closed by the server, after seconds without a case.
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[host], timeout=PATIENCE_S)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise AssertionError(f"the {host} gave no answer: {error!r}") from error
        finally:
            connection.close()
        self._check_words(text)
        self._check_canary(beside)
        return answer.status, text

    def _check_refusal(self, error: Any) -> None:
        assert error.code().name in REFUSED, f"{error.code().name}: {error.details()}"
        self._check_words(error.details())

    def _check_words(self, words: str) -> None:
        assert not INTERNALS.search(words), words
        assert SECRET not in words, words

    def _check_canary(self, answer: Any) -> None:
        try:
            got = self._scores(answer.result())
        except grpc.RpcError as error:
            raise AssertionError(f"a good request failed beside it: {error.details()}") from error
        np.testing.assert_allclose(got, self._known, rtol=0, atol=self._tolerance)

    def _scores(self, answer: Any) -> Any:
        names = [output.name for output in answer.outputs]
        return np.frombuffer(answer.raw_output_contents[names.index("SCORES")], np.float32)

    def _processes(self) -> set[int]:
        return {self._process.pid, *(child.pid for child in self._process.children(recursive=True))}
