"""Triton's Python model ``tokenizer``: query and documents to packed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from packed_request import PackedRequest, RequestPacker, check_student
from pair_encoding import EncodingError, PairEncoder
from token_cache import TokenCache

TEXTS = ("TITLES", "SUMMARIES")
IDS = ("DOCUMENT_IDS", "DOCUMENT_LENGTHS")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        directory = Path(args["model_repository"])
        self.packer = RequestPacker(PairEncoder.load(directory), _cache_bytes(json.loads(args["model_config"])))
        self.metrics = CacheMetrics(args)
        pb_utils.Logger.log_info(f"{args['model_name']}: {check_student(directory)}")

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = [self._respond(request) for request in requests]
        self.metrics.update(self.packer.cache)
        return responses

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            packed = self._packed(tensors)
        except EncodingError as error:
            invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)
        outputs = {**packed.batch._asdict(), "TRUNCATED": packed.truncated}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _packed(self, tensors: dict[str, Any]) -> PackedRequest:
        query = tensors.pop("QUERY")
        if tensors.keys() == {*TEXTS}:
            return self.packer.pack_texts(query, *(tensors[name] for name in TEXTS))
        if tensors.keys() == {*IDS}:
            return self.packer.pack_ids(query, *(tensors[name] for name in IDS))
        raise EncodingError(f"documents come as {' and '.join(TEXTS)} or as {' and '.join(IDS)}, not as {[*tensors]}")


class CacheMetrics:
    """What Triton's ``/metrics`` says of this instance's cache."""

    def __init__(self, args: dict[str, str]) -> None:
        labels = {"model": args["model_name"], "version": args["model_version"], "instance": args["model_instance_name"]}
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self._families = {  # kept: a family that goes takes its metrics with it
            "lookups": _family("lookups", "documents that were looked up", counter),
            "hits": _family("hits", "documents that were not tokenised again", counter),
            "bytes": _family("bytes", "memory that the cache takes", gauge),
        }
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._last = {"lookups": 0, "hits": 0}

    def update(self, cache: TokenCache) -> None:
        now = {"lookups": cache.lookups, "hits": cache.hits}
        if now == self._last:
            return
        for name, count in now.items():
            self._metrics[name].increment(count - self._last[name])
        self._metrics["bytes"].set(cache.bytes)
        self._last = now


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=f"disranker_document_cache_{name}", description=description, kind=kind)


def _cache_bytes(config: dict[str, Any]) -> int:
    """The setting of config.pbtxt; without one nothing is kept."""
    given = config["parameters"].get("document_cache_bytes", {"string_value": "0"})["string_value"]
    if not given.isdecimal():
        raise pb_utils.TritonModelException(f"document_cache_bytes of config.pbtxt must be 0 or more, not {given!r}")
    return int(given)
