"""Triton's Python model ``tokenizer``: query and documents to pairs, flat or in packed rows."""

from __future__ import annotations

import json
import os
import threading
import time
from math import prod
from pathlib import Path
from traceback import format_tb
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import OverloadedError, Urgency
from gate import Gate, urgency_of
from metrics import COUNTER, GAUGE, Metrics, wants_times
from pair_encoding import EncodingError, FlatPairs, PairEncoder, Truncation
from request_encoder import RequestEncoder, check_student, truncation_of
from token_cache import TokenCache

TEXTS = ("TITLES", "SUMMARIES")
IDS = ("DOCUMENT_IDS", "DOCUMENT_LENGTHS")
COUNTED = ("TITLES", "DOCUMENT_LENGTHS")  # an element for each document
FLAT = ("token_ids", "lengths", "document_starts")
METRICS = {
    "document_cache_lookups": ("documents that were looked up", COUNTER),
    "document_cache_hits": ("documents that were not tokenised again", COUNTER),
    "document_cache_bytes": ("memory that the cache takes", GAUGE),
    "requests_refused": ("requests that were refused at once, since they could not be scored in time", COUNTER),
    "server_restarts": ("how often the embedded server has started Triton again", GAUGE),
}
RESTARTS = "DISRANKER_RESTARTS"  # the variable in which it tells Triton
METRICS_EVERY_S = 1.0
TIMES = "TOKENIZER_MS"
# Parameters of config.pbtxt, and what holds in a configuration of an older release, which lacks them.
SETTINGS = (("document_cache_bytes", 0), ("max_request_bytes", 16 * 2**20))


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        directory = Path(args["model_repository"])
        encoder = PairEncoder.load(directory)
        config = json.loads(args["model_config"])
        self.layout = encoder.config.layout
        cache_bytes, request_bytes = (_setting(config, *known) for known in SETTINGS)
        self.encoder = RequestEncoder(encoder, cache_bytes, request_bytes)
        scored_by = config["parameters"].get("scored_by", {"string_value": "student"})["string_value"]
        pb_utils.Logger.log_info(f"{args['model_name']}: {check_student(directory, scored_by)}")
        self.gate = Gate(scored_by)
        self.gate.boards.look()
        self.metrics = MetricsThread(Metrics(args, METRICS), self.encoder.cache, self.gate)
        self.metrics.start()  # last: Triton does not finalize what it could not initialize

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        self.metrics.stop()  # while Triton still answers: metrics that go later crash this process

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        kind, came = pb_utils.TritonError, time.monotonic()
        try:
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            documents = max((prod(tensor.shape()) for name, tensor in tensors.items() if name in COUNTED), default=0)
            urgency = urgency_of(request.timeout(), request.parameters())
            self.gate.check(documents, urgency)  # before texts are read, which takes longer than a refusal
            truncation = truncation_of(request.parameters())
            pairs = self._pairs({name: tensor.as_numpy() for name, tensor in tensors.items()}, truncation)
            self.gate.learn(len(pairs), pairs.token_ids.size)
            outputs = self._outputs(pairs, urgency, {*request.requested_output_names()} - {TIMES})
            if wants_times(request.parameters()):
                outputs[TIMES] = self._times(time.monotonic() - came)
        except EncodingError as error:
            return pb_utils.InferenceResponse(error=kind(str(error), kind.INVALID_ARG))
        except OverloadedError as error:
            return pb_utils.InferenceResponse(error=kind(str(error), kind.UNAVAILABLE))
        except Exception as error:  # Triton would send its traceback to the caller
            # Nor may the log hold the message, in which text may be.
            pb_utils.Logger.log_error(f"tokenizer: {type(error).__name__}\n{''.join(format_tb(error.__traceback__))}")
            return pb_utils.InferenceResponse(error=kind("the tokenizer failed; the server's log says where"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, pairs: FlatPairs, urgency: Urgency, names: set[str]) -> dict[str, Any]:
        """The outputs that are asked for: rows are laid out only for a student that cannot do it."""
        outputs: dict[str, Any] = {"TRUNCATED": pairs.truncated, "urgency": np.array(urgency)}
        outputs |= {name: getattr(pairs, name).astype(np.int32) for name in FLAT}
        if not names <= outputs.keys():
            outputs |= self.layout.pack(pairs)._asdict()
        return {name: outputs[name] for name in names}

    def _times(self, whole_s: float) -> Any:
        """Milliseconds of the request in the cache, in the library that tokenises, and in all else."""
        lookup_s, tokenising_s = self.encoder.lookup_s, self.encoder.tokenising_s
        return np.array([lookup_s, tokenising_s, whole_s - lookup_s - tokenising_s], np.float32) * 1000

    def _pairs(self, tensors: dict[str, Any], truncation: Truncation) -> FlatPairs:
        if (query := tensors.pop("QUERY", None)) is None:  # Triton only counts inputs where some are optional
            raise EncodingError("QUERY is missing")
        if tensors.keys() == {*TEXTS}:
            return self.encoder.encode_texts(query, *(tensors[name] for name in TEXTS), truncation=truncation)
        if tensors.keys() == {*IDS}:
            return self.encoder.encode_ids(query, *(tensors[name] for name in IDS), truncation=truncation)
        raise EncodingError(f"documents come as {' and '.join(TEXTS)} or as {' and '.join(IDS)}, not as {[*tensors]}")


class MetricsThread(threading.Thread):
    """Once a second, this instance's numbers to Triton and the students' to the gate."""

    def __init__(self, metrics: Metrics, cache: TokenCache, gate: Gate) -> None:
        super().__init__(name="metrics", daemon=True)
        self._metrics, self._cache, self._gate = metrics, cache, gate
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(METRICS_EVERY_S):
            self._gate.boards.look()
            self._metrics.show(
                document_cache_lookups=self._cache.lookups,
                document_cache_hits=self._cache.hits,
                document_cache_bytes=self._cache.bytes,
                requests_refused=self._gate.refused,
                server_restarts=int(os.environ.get(RESTARTS, 0)),
            )

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._metrics.close()


def _setting(config: dict[str, Any], name: str, default: int) -> int:
    given = config["parameters"].get(name, {"string_value": str(default)})["string_value"]
    if not given.isdecimal():
        raise pb_utils.TritonModelException(f"{name} of config.pbtxt must be 0 or more, not {given!r}")
    return int(given)
