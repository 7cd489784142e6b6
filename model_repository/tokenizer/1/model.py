"""Triton's Python model ``tokenizer``: query and documents to pairs, flat or in packed rows."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from traceback import format_tb
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from pair_encoding import EncodingError, FlatPairs, PairEncoder
from request_encoder import RequestEncoder, check_student
from token_cache import TokenCache

TEXTS = ("TITLES", "SUMMARIES")
IDS = ("DOCUMENT_IDS", "DOCUMENT_LENGTHS")
FLAT = ("token_ids", "lengths", "document_starts")
METRICS = (
    ("lookups", "documents that were looked up", "counter"),
    ("hits", "documents that were not tokenised again", "counter"),
    ("bytes", "memory that the cache takes", "gauge"),
)
METRICS_EVERY_S = 1.0
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
        self.metrics = CacheMetrics(args, self.encoder.cache)
        self.metrics.start()  # last: Triton does not finalize what it could not initialize

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        self.metrics.stop()  # while Triton still answers: metrics that go later crash this process

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        kind = pb_utils.TritonError
        try:
            pairs = self._pairs({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            outputs = self._outputs(pairs, {*request.requested_output_names()})
        except EncodingError as error:
            return pb_utils.InferenceResponse(error=kind(str(error), kind.INVALID_ARG))
        except Exception as error:  # Triton would send its traceback to the caller
            # Nor may the log hold the message, in which text may be.
            pb_utils.Logger.log_error(f"tokenizer: {type(error).__name__}\n{''.join(format_tb(error.__traceback__))}")
            return pb_utils.InferenceResponse(error=kind("the tokenizer failed; the server's log says where"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, pairs: FlatPairs, names: set[str]) -> dict[str, Any]:
        """The outputs that are asked for: rows are laid out only for a student that cannot do it."""
        outputs: dict[str, Any] = {"TRUNCATED": pairs.truncated}
        outputs |= {name: getattr(pairs, name).astype(np.int32) for name in FLAT}
        if not names <= outputs.keys():
            outputs |= self.layout.pack(pairs)._asdict()
        return {name: outputs[name] for name in names}

    def _pairs(self, tensors: dict[str, Any]) -> FlatPairs:
        if (query := tensors.pop("QUERY", None)) is None:  # Triton only counts inputs where some are optional
            raise EncodingError("QUERY is missing")
        if tensors.keys() == {*TEXTS}:
            return self.encoder.encode_texts(query, *(tensors[name] for name in TEXTS))
        if tensors.keys() == {*IDS}:
            return self.encoder.encode_ids(query, *(tensors[name] for name in IDS))
        raise EncodingError(f"documents come as {' and '.join(TEXTS)} or as {' and '.join(IDS)}, not as {[*tensors]}")


class CacheMetrics(threading.Thread):
    """Reports this instance's cache in Triton's ``/metrics``, once a second: each number is a message to
    Triton's process, which a request would wait for."""

    def __init__(self, args: dict[str, str], cache: TokenCache) -> None:
        super().__init__(name="cache-metrics", daemon=True)
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
            # Of two models that are reloaded the new one is there before the old one goes. With equal labels they would
            # share Triton's metric, which the old one frees: the next number of the new one then ends up anywhere in
            # the server's memory.
            "process": str(os.getpid()),
        }
        self._cache = cache
        self._families = [_family(*described) for described in METRICS]
        self._lookups, self._hits, self._bytes = (family.Metric(labels=labels) for family in self._families)
        self._stopped = threading.Event()

    def run(self) -> None:
        lookups = hits = 0
        while not self._stopped.wait(METRICS_EVERY_S):
            now = self._cache.lookups, self._cache.hits
            if now != (lookups, hits):
                self._lookups.increment(now[0] - lookups)
                self._hits.increment(now[1] - hits)
                self._bytes.set(self._cache.bytes)
                lookups, hits = now

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        del self._lookups, self._hits, self._bytes  # before their families, which would take them along
        del self._families


def _family(name: str, description: str, kind: str) -> Any:
    kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
    return pb_utils.MetricFamily(name=f"disranker_document_cache_{name}", description=description, kind=kinds[kind])


def _setting(config: dict[str, Any], name: str, default: int) -> int:
    given = config["parameters"].get(name, {"string_value": str(default)})["string_value"]
    if not given.isdecimal():
        raise pb_utils.TritonModelException(f"{name} of config.pbtxt must be 0 or more, not {given!r}")
    return int(given)
