"""Triton's Python model ``student``; a built version holds a copy, since Triton wants it there.

Each request is answered by its response sender, when its last row is scored: ``execute`` only hands rows
on, and the next requests come while the engine works.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from processor_engine import ProcessorEngine, Work
from scheduler import OverloadedError, Request, Scheduler, Scores, StoppedError

# Python lets a thread wait this long for another's turn. The engine's asks for one after each call, which takes some
# ten milliseconds, while the main thread takes in requests: 5 ms, the default, would be a good part of that.
TURN_S = 0.0005
PROCESSORS = {
    "openvino": ("openvino_engine", "OpenVinoEngine"),
    "onnxruntime": ("onnxruntime_engine", "OnnxRuntimeEngine"),
}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(TURN_S)
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        instances = sum(group["count"] for group in config["instance_group"])  # processes on the same cores
        self.engine = open_engine(Path(args["model_repository"]) / args["model_version"], instances)
        pb_utils.Logger.log_info(f"{args['model_name']}: {self.engine.describe()}")
        for note in self.engine.notes:
            pb_utils.Logger.log_warn(f"{args['model_name']}: {note}")
        most = max_waiting_rows(config)
        per_row = self.engine.cost_per_call // self.engine.rows_per_call
        self.scheduler = Scheduler(self.engine.score, self.engine.cost_per_call, most, per_row)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[None]:
        for request in requests:
            sender = request.get_response_sender()
            # Copied: Triton's own copy lies in shared memory, which containers have little of.
            rows = tuple(np.array(pb_utils.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs)
            try:
                work = self.engine.prepare(rows)
                self.scheduler.submit(Request(work.rows, work.costs, partial(_answer, sender, work)))
            except (OverloadedError, StoppedError, ValueError) as error:  # ValueError: rows that nothing of ours packs
                _send(sender, error)
        return [None] * len(requests)

    def finalize(self) -> None:
        self.scheduler.close()


def open_engine(version: Path, instances: int) -> Any:
    """What scores this version's rows: ``score`` of what ``prepare`` gives, on its share of the cores."""
    name = json.loads((version / "manifest.json").read_text(encoding="utf-8"))["engine"]
    if name == "torch":
        return importlib.import_module("torch_engine").TorchEngine.load(version, instances)
    if name not in PROCESSORS:
        raise pb_utils.TritonModelException(f"{version} is for {name}, which Triton's Python backend does not run")
    module, kind = PROCESSORS[name]
    return ProcessorEngine.load(version, getattr(importlib.import_module(module), kind), instances)


def max_waiting_rows(config: dict[str, Any]) -> int:
    """The setting of the configuration; without one any number may wait."""
    given = config["parameters"].get("max_waiting_rows", {"string_value": "0"})["string_value"]
    if not given.isdecimal():
        raise pb_utils.TritonModelException(f"max_waiting_rows of the configuration must be 0 or more, not {given!r}")
    return int(given)


def _answer(sender: Any, work: Work, outcome: Scores | Exception) -> None:
    _send(sender, outcome if isinstance(outcome, Exception) else work.restored(outcome))


def _send(sender: Any, outcome: Scores | Exception) -> None:
    if isinstance(outcome, Exception):
        kind = pb_utils.TritonError
        code = kind.UNAVAILABLE if isinstance(outcome, OverloadedError | StoppedError) else kind.INTERNAL
        response = pb_utils.InferenceResponse(error=kind(f"student: {outcome}", code))
    else:
        response = pb_utils.InferenceResponse([pb_utils.Tensor("scores", outcome)])
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except pb_utils.TritonModelException as error:  # whoever asked is gone; the others are still to be answered
        pb_utils.Logger.log_warn(f"student: an answer could not be sent: {error}")
