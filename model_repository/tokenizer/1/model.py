"""Triton's Python model ``tokenizer``: query and documents to packed rows."""

from __future__ import annotations

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils
from packed_request import check_student, pack_request
from pair_encoding import EncodingError, PairEncoder


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        directory = Path(args["model_repository"])
        self.encoder = PairEncoder.load(directory)
        parameters = json.loads(args["model_config"])["parameters"]  # "scored_by" is said for a teacher's rows
        student = parameters.get("scored_by", {"string_value": "student"})["string_value"]
        pb_utils.Logger.log_info(f"{args['model_name']}: {check_student(directory, student)}")

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        inputs = [
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("QUERY", "TITLES", "SUMMARIES")
        ]
        try:
            packed = pack_request(self.encoder, *inputs)
        except EncodingError as error:
            invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)
        outputs = {**packed.batch._asdict(), "TRUNCATED": packed.truncated}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
