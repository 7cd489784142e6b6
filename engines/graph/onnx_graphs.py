"""Open and change ONNX graphs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from engines.records import EngineError


def replace(repeated: Any, messages: list[Any]) -> None:
    """Replace the contents of a repeated field; ``messages`` may be some of its own."""
    copies = [copy.deepcopy(message) for message in messages]  # clearing the field takes those that it holds
    del repeated[:]
    repeated.extend(copies)


def onnx_session(model: Path, optimised: bool = True) -> Any:
    """ONNX Runtime's session of a graph. Raises EngineError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "without a GPU that opens the engine, its graph is checked in ONNX Runtime, and fp8 is calibrated in it: "
            "pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
