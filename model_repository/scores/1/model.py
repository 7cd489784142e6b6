"""Triton's Python model ``scores``: scores[R, S] by slot to SCORES[N] in the caller's order."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        scores_RS, slots_N = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("scores", "slots")
        )
        wrong = slots_N[(slots_N < 0) | (slots_N >= scores_RS.size)]
        if wrong.size:
            return _refused(f"{scores_RS.size} scores have no slot {wrong[0]}")
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", scores_RS.reshape(-1)[slots_N])])


def _refused(message: str) -> Any:
    kind = pb_utils.TritonError
    return pb_utils.InferenceResponse(error=kind(f"scores: {message}", kind.INVALID_ARG))
