"""Triton's Python model ``scores``: scores[R, S] by slot to SCORES[N] in the caller's order."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        scores_RS, slots_N = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("scores", "slots")
        )
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", scores_RS.reshape(-1)[slots_N])])
