"""Triton's Python model ``student``; a built version holds a copy, since Triton wants it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

INPUTS = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "pool_positions")
Rows = tuple[npt.NDArray[np.int32], ...]  # one array [R, L] or [R, S] for each of INPUTS


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.engine = open_engine(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """All requests' rows in one run."""
        several = [self._rows(request) for request in requests]
        joined = tuple(np.concatenate(arrays) for arrays in zip(*several, strict=True))
        ends = np.cumsum([len(rows[0]) for rows in several])[:-1]
        scores = np.split(self.engine.score(joined), ends)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores_RS)]) for scores_RS in scores]

    def _rows(self, request: pb_utils.InferenceRequest) -> Rows:
        return tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)


def open_engine(directory: Path) -> Any:
    """The engine of a version; the libraries of the others need not be there."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    if manifest["engine"] == "torch":
        from torch_engine import TorchEngine

        engine = TorchEngine.load(directory)
        pb_utils.Logger.log_info(f"student: {engine.describe()}")
        return engine
    from packed_engine import PackedEngine

    return PackedEngine.load(directory)
