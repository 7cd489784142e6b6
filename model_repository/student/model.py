"""Triton's Python model ``student`` (or ``teacher``); a built version holds a copy, since Triton wants it there.

Each request is answered by its response sender, when its last pair is scored: ``execute`` only hands pairs on, and the
next requests come while the engine works.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from digests import damage
from metrics import COUNTER, GAUGE, Metrics, wants_times
from runtime.admission import ANY_TIME, BATCH, PERSON, UnavailableError, Urgency
from runtime.board import Board
from runtime.packing import FlatPairs, FloatArray
from runtime.pair_queue import Request
from runtime.pair_scorer import PairScorer
from runtime.scheduler import Scheduler

# Python lets a thread wait this long for another's turn. The engine's asks for one after each call, which takes some
# ten milliseconds, while the main thread takes in requests: 5 ms, the default, would be a good part of that.
TURN_S = 0.0005
PAIRS, URGENCY = ("token_ids", "lengths", "document_starts"), "urgency"
SCORES, TIMES = "SCORES", "STUDENT_MS"
METRICS = {
    "requests_refused": ("requests that were refused at once, since they could not be scored in time", COUNTER),
    "requests_dropped": ("requests that were past their deadline before they were scored", COUNTER),
    "expected_wait_seconds": ("work that waits for the engine", GAUGE),
    "engine_calls": ("calls of the engine that succeeded", COUNTER),
    "engine_tokens": ("tokens of the pairs that were scored in these calls", COUNTER),
    "engine_seconds": ("time that the engine worked in these calls", COUNTER),
}


class InvalidPairsError(ValueError):
    """The tensors are no pairs that the engine was built for; the caller is at fault."""


class Limits(NamedTuple):
    """The limits of pairs off the wire. A ``max_documents`` or ``vocabulary`` of 0 is not known, and not checked."""

    max_documents: int
    row_length: int
    vocabulary: int


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(TURN_S)
        self.name, config = args["model_name"], json.loads(args["model_config"])
        if tuple(tensor["name"] for tensor in config["input"]) != (*PAIRS, URGENCY):
            raise pb_utils.TritonModelException(
                f"{self.name}: the configurations of this model repository are of an older release; build the engine "
                "into a new --model_repository"
            )
        instances = sum(group["count"] for group in config["instance_group"])  # processes on the same cores
        self.scorer = open_scorer(Path(args["model_repository"]) / args["model_version"], instances)
        pb_utils.Logger.log_info(f"{self.name}: {self.scorer.describe()}")
        for note in self.scorer.graph.notes:
            pb_utils.Logger.log_warn(f"{self.name}: {note}")
        if not self.scorer.vocabulary:
            pb_utils.Logger.log_warn(f"{self.name}: built by an older release, so token ids are not checked here")
        self.scorer.warm_up()
        row_length = self.scorer.layout.row_length
        self.limits = Limits(setting(config, "max_documents"), row_length, self.scorer.vocabulary)
        self.board, self.metrics = Board(self.name), Metrics(args, METRICS)
        self.scheduler = Scheduler(
            self.scorer.score,
            self.scorer.tokens_per_call,
            setting(config, "max_wait_s") or math.inf,
            watch=lambda waiting: self.board.show(waiting.numbers()),
            tick=self._show_metrics,
            engine_s=lambda: self.scorer.engine_s,
        )

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[None]:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take_in(request, sender)
            except Exception as error:  # Triton would send its traceback to all callers of the batch
                self._send(sender, error)
        return [None] * len(requests)

    def _take_in(self, asked: pb_utils.InferenceRequest, sender: Any) -> None:
        came = time.monotonic()
        token_ids, lengths, starts = (tensor_of(asked, name) for name in PAIRS)
        # The request keeps copies: Triton's own arrays lie in shared memory, which containers have little of.
        pairs = flat_pairs(token_ids, lengths, starts, self.limits)
        urgency = urgency_of(pb_utils.get_input_tensor_by_name(asked, URGENCY))
        request = Request(pairs, partial(self._send, sender), urgency)
        if wants_times(asked.parameters()):
            request.answer = partial(self._send, sender, times=partial(request.times.parts_s, came))
        self.scheduler.submit(request)

    def finalize(self) -> None:
        self.scheduler.close()
        self.metrics.close()
        self.board.close()

    def _show_metrics(self) -> None:
        scheduler = self.scheduler
        wait_s = scheduler.waiting().wait_s(time.monotonic())
        self.metrics.show(
            requests_refused=scheduler.refused,
            requests_dropped=scheduler.dropped,
            expected_wait_seconds=wait_s,
            engine_calls=scheduler.calls,
            engine_tokens=scheduler.tokens,
            engine_seconds=scheduler.engine_s,
        )

    def _send(
        self, sender: Any, outcome: FloatArray | Exception, times: Callable[[float], Sequence[float]] | None = None
    ) -> None:
        if isinstance(outcome, Exception):
            response = pb_utils.InferenceResponse(error=self._error(outcome))
        else:
            tensors = {SCORES: outcome}
            if times:
                tensors[TIMES] = np.array(times(time.monotonic()), np.float32) * 1000
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors.items()])
        try:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except pb_utils.TritonModelException as error:  # whoever asked is gone; the others are still to be answered
            pb_utils.Logger.log_warn(f"{self.name}: an answer could not be sent: {error}")

    def _error(self, error: Exception) -> Any:
        kind = pb_utils.TritonError
        if isinstance(error, InvalidPairsError):
            return kind(f"{self.name}: {error}", kind.INVALID_ARG)
        if isinstance(error, UnavailableError):
            return kind(f"{self.name}: {error}", kind.UNAVAILABLE)
        # A library's words may hold paths of this machine, which are not for callers.
        pb_utils.Logger.log_error(f"{self.name}: the engine failed: {error!r}")
        return kind(f"{self.name}: the engine failed; the server's log says why", kind.INTERNAL)


def open_scorer(version: Path, instances: int) -> PairScorer:
    """The scorer of this version's pairs, on its share of the cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before a library loads: spinning threads starve other work
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    if wrong := damage(version, manifest.get("files", {})):
        raise pb_utils.TritonModelException(wrong)
    module, _, kind = manifest.get("served_by", "").rpartition(".")
    if not module:
        raise pb_utils.TritonModelException(
            f"{version} is for {manifest['engine']}, which Triton's Python backend does not run, or of an older "
            "release: build it again"
        )
    return PairScorer.load(version, getattr(importlib.import_module(f"runtime.{module}"), kind), instances)


def tensor_of(request: pb_utils.InferenceRequest, name: str) -> Any:
    """An input as an array. Raises InvalidPairsError without it: Triton only counts inputs where some are optional."""
    if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is None:
        raise InvalidPairsError(f"{name} is missing")
    return tensor.as_numpy()


def flat_pairs(token_ids: Any, lengths: Any, document_starts: Any, limits: Limits) -> FlatPairs:
    """Pairs off the wire. Raises InvalidPairsError for what no tokenizer of ours hands on."""
    if not lengths.size or lengths.shape != document_starts.shape or lengths.sum() != token_ids.size:
        raise InvalidPairsError(
            f"{token_ids.size} token_ids with {lengths.size} lengths and {document_starts.size} document_starts "
            "are no pairs"
        )
    if limits.max_documents and lengths.size > limits.max_documents:
        raise InvalidPairsError(f"a request has at most {limits.max_documents} pairs, not {lengths.size}")
    if (wrong := lengths[(lengths < 1) | (lengths > limits.row_length)]).size:
        raise InvalidPairsError(f"a pair has 1 to {limits.row_length} tokens, not {wrong[0]}")
    if (wrong := document_starts[(document_starts < 0) | (document_starts > lengths)]).size:
        raise InvalidPairsError(f"a document starts within its pair, not at {wrong[0]}")
    if limits.vocabulary and (wrong := token_ids[(token_ids < 0) | (token_ids >= limits.vocabulary)]).size:
        raise InvalidPairsError(f"token ids are 0 to {limits.vocabulary - 1}, not {wrong[0]}")
    truncated = np.zeros(lengths.shape, np.bool_)  # the tokenizer has told the caller
    return FlatPairs(token_ids, lengths.astype(np.int64), document_starts.astype(np.int64), truncated)


def urgency_of(tensor: Any) -> Urgency:
    """The priority and the deadline that the tokenizer has read off a request; any time without them. Raises
    InvalidPairsError for what no tokenizer of ours hands on."""
    if tensor is None:
        return ANY_TIME
    numbers = tensor.as_numpy().tolist()
    if len(numbers) != len(Urgency._fields) or numbers[0] not in (PERSON, BATCH) or math.isnan(numbers[1]):
        raise InvalidPairsError(f"{URGENCY} is a priority ({PERSON} or {BATCH}) and a deadline, not {numbers[:9]}")
    return Urgency(int(numbers[0]), numbers[1])


def setting(config: dict[str, Any], name: str) -> int:
    """The number of that name among the configuration's parameters; 0 without one, which is no limit."""
    given = config["parameters"].get(name, {"string_value": "0"})["string_value"]
    if not given.isdecimal():
        raise pb_utils.TritonModelException(f"{name} of the configuration must be 0 or more, not {given!r}")
    return int(given)
