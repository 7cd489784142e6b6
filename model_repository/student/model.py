"""Triton's Python model ``student``; a built version holds a copy, since Triton wants it there."""

from __future__ import annotations

from pathlib import Path

import triton_python_backend_utils as pb_utils
from packed_engine import INPUTS, PackedEngine, Rows


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.engine = PackedEngine.load(Path(args["model_repository"]) / args["model_version"])
        for note in self.engine.notes:
            pb_utils.Logger.log_warn(f"student: {note}")

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        scores = self.engine.score_requests([self._rows(request) for request in requests])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores_RS)]) for scores_RS in scores]

    def _rows(self, request: pb_utils.InferenceRequest) -> Rows:
        return tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)
