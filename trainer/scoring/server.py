"""A teacher behind a running Triton: what it is, and requests to it that outlast a restart.

Shapes: N documents of a request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as grpc

from client.wire import LIMIT
from model_repository.tokenizer.pair_encoding import FloatArray
from trainer.data.records import DataError, JudgedDocument

FIRST_S = 10.0  # for a server to say that it is there
SERVICE = "inference.GRPCInferenceService"
QUESTIONS = [{"service": SERVICE, "method": method} for method in ("ModelConfig", "ModelMetadata")]
WAITS = {"maxAttempts": 5, "initialBackoff": "1s", "backoffMultiplier": 3, "maxBackoff": "30s"}
# gRPC sends a request again that met a server which stops, starts or has a full queue: after 1, 3, 9 and 27 s, about.
# One that finds no server waits for it, as long as the request may last. A server that stops unloads its models, and
# then does not find them.
RETRIES = [
    {
        "name": [{"service": SERVICE, "method": "ModelInfer"}],
        "waitForReady": True,
        "retryPolicy": {**WAITS, "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND"]},
    },
    {"name": QUESTIONS, "waitForReady": True, "retryPolicy": {**WAITS, "retryableStatusCodes": ["UNAVAILABLE"]}},
]
LARGEST = 2**31 - 1
CHANNEL = [
    ("grpc.max_send_message_length", LARGEST),
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.per_rpc_retry_buffer_size", LARGEST),  # larger requests than this are not sent again
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.service_config", json.dumps({"methodConfig": RETRIES})),
]
NAMED_DOCUMENT = re.compile(r"\b(?:document |TITLES\[|SUMMARIES\[)(\d+)")  # of a refused request, from 0


class ServerError(DataError):
    """A server that does not answer, or not as a teacher does; the message says what to do."""


class Teacher(NamedTuple):
    """What a server scores with: ``identity`` decides the scores, ``name`` is for people.

    ``documents_per_request`` is the most that a request may have.
    """

    name: str
    identity: str
    documents_per_request: int


class Request(NamedTuple):
    """Documents of one query that are scored together."""

    query_id: str
    query: str
    documents: tuple[JudgedDocument, ...]


class TritonServer:
    """A connection to the ensemble ``model`` of one server, for any number of threads.

    Raises ServerError where none answers, and where it does not serve the model.
    """

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        self._url, self._model, self._timeout_s = url, model, timeout_s
        self._client = grpc.InferenceServerClient(url, channel_args=CHANNEL)
        try:
            self._client.is_server_live(client_timeout=FIRST_S)
            self.teacher = self._find_teacher()
        except grpc.InferenceServerException as error:
            self.close()
            raise self._unusable(error) from error

    def close(self) -> None:
        self._client.close()

    def check_unchanged(self) -> None:
        """Raises ServerError where the server has another teacher by now: it may have been started again since."""
        try:
            now = self._find_teacher()
        except grpc.InferenceServerException as error:
            raise self._unusable(error) from error
        if now.identity != self.teacher.identity:
            raise ServerError(
                f"{self._url} has another teacher by now: {now.name} ({now.identity}) instead of {self.teacher.name} "
                f"({self.teacher.identity}): give it the one before, or remove the shards to start anew"
            )

    def send(self, request: Request, done: Callable[[], None]) -> Future[FloatArray]:
        """The scores [N] to come (logits); ``done`` is called, by a thread of gRPC's, when they or an error are there.

        The future raises DataError for a request that the server refuses, ServerError for none that answers.
        """
        titles, summaries = zip(*((document.title, document.summary) for document in request.documents), strict=True)
        inputs = [_strings("QUERY", [request.query]), _strings("TITLES", titles), _strings("SUMMARIES", summaries)]
        answer: Future[FloatArray] = Future()

        def receive(result: Any, error: grpc.InferenceServerException | None) -> None:
            if error is None:
                answer.set_result(result.as_numpy("SCORES"))
            else:
                answer.set_exception(self._refused(request, error))
            done()

        scores_alone = [grpc.InferRequestedOutput("SCORES")]
        self._client.async_infer(self._model, inputs, receive, outputs=scores_alone, client_timeout=self._timeout_s)
        return answer

    def _find_teacher(self) -> Teacher:
        steps = self._config(self._model).get("ensemble_scheduling", {}).get("step", [])
        configs = [self._config(step["model_name"]) for step in steps]
        scorers = [config for config in configs if LIMIT in config.get("parameters", {})]
        if len(scorers) != 1 or not self._client.is_model_ready(self._model, client_timeout=self._timeout_s):
            raise ServerError(
                f"{self._url}: {self._model!r} is no ensemble of ours that is ready: --triton_model names one"
            )
        name = scorers[0]["name"]
        metadata = self._client.get_model_metadata(name, as_json=True, client_timeout=self._timeout_s)
        version = max(map(int, metadata["versions"]))
        built = scorers[0].get("parameters", {}).get(f"version.{version}", {}).get("string_value")
        called = f"{name} version {version}"
        return Teacher(
            called, built or f"{called} at {self._url}", int(scorers[0]["parameters"][LIMIT]["string_value"])
        )

    def _config(self, model: str) -> dict[str, Any]:
        answer = self._client.get_model_config(model, as_json=True, client_timeout=self._timeout_s)
        config: dict[str, Any] = answer["config"]
        return config

    def _unusable(self, error: grpc.InferenceServerException) -> ServerError:
        status, message = _status(error)
        if status == "NOT_FOUND" or "unknown model" in message:
            return ServerError(
                f"the server at {self._url} does not serve {self._model!r} ({message}): build it with build_engines.py "
                "--teacher and start the server again, or name another with --triton_model"
            )
        return ServerError(f"no server answers at {self._url} ({status}): start it, or name its gRPC port in --triton")

    def _refused(self, request: Request, error: grpc.InferenceServerException) -> DataError:
        status, message = _status(error)
        where = f"{self._url}: query {request.query_id!r}"
        if status == "INVALID_ARGUMENT":
            named = NAMED_DOCUMENT.search(message)
            document = f", document {request.documents[int(named[1])].doc_id!r}" if named else ""
            return DataError(f"{where}{document}: {message}")
        if status == "DEADLINE_EXCEEDED":
            return ServerError(
                f"{where}: no answer within {self._timeout_s:g} s: see whether the server runs, or raise --timeout_s; "
                "the same command goes on"
            )
        return ServerError(f"{where}: {status}: {message}: the same command goes on when the server answers again")


def _status(error: grpc.InferenceServerException) -> tuple[str, str]:
    return str(error.status()).removeprefix("StatusCode."), str(error.message()).strip()


def _strings(name: str, texts: Sequence[str]) -> grpc.InferInput:
    # Lone surrogates, which JSON can spell and UTF-8 cannot, are replaced as the pair encoding does it.
    encoded = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode() for text in texts]
    tensor = grpc.InferInput(name, [len(encoded)], "BYTES")
    tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_))
    return tensor
