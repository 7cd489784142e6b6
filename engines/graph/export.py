"""The ONNX graph that engines are built from: packed rows in, a score per pair out.

The number of rows is free. Their length and slots are fixed for GPUs, and free for processors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engines.graph.precision import typed_model
from engines.records import OUTPUT, Dimensions, EngineError, Graph
from model_repository.tokenizer.pair_encoding import INPUTS
from trainer.checkpoints.load import PackedScorer

OPSET = 18


def export_graph(
    model: PreTrainedModel,
    dimensions: Dimensions,
    precision: str,
    path: Path,
    opset: int = OPSET,
    any_length: bool = False,
) -> Graph:
    """Write a float32 scorer as ONNX at ``path``: ``INPUTS`` int32 to ``scores[R, S]`` float32.

    ``precision`` (a key of ``DTYPES``) is the type of the body's weights and matrix products. With ``any_length`` rows
    may be shorter than the dimensions, and have fewer slots for pairs. Raises EngineError where the exporter lacks its
    packages.
    """
    example, rows = example_rows(dimensions, any_length)
    try:
        with torch.no_grad(), _without_noise():
            torch.onnx.export(
                Int32Scorer(typed_model(model, precision)).eval(),
                example,
                path,
                dynamo=True,
                opset_version=opset,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamic_shapes=rows,
                external_data=True,
                verbose=False,
            )
    except ImportError as error:
        raise EngineError(f"the ONNX export needs {error.name}: pip install onnx onnxscript") from error
    return Graph(path, precision, dimensions)


def example_rows(
    dimensions: Dimensions, any_length: bool = False
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs to trace with, and which of their axes stay free: the rows, and with ``any_length`` their length and
    slots."""
    rows = torch.export.Dim("rows", min=1, max=max(dimensions.max_rows, 2))
    # Two rows, since the exporter takes an axis of 1 as fixed.
    example = [torch.zeros((2, dimensions.width(name) or 0), dtype=torch.int32) for name in INPUTS]
    free = [{0: rows} for _ in INPUTS]
    if any_length:
        length = torch.export.Dim("length", min=2, max=dimensions.row_length)
        most = max(dimensions.slots_per_row, 2)
        slots = torch.export.Dim("slots", min=1, max=most)
        example[-1] = torch.zeros((2, most), dtype=torch.int32)
        free = [*({0: rows, 1: length} for _ in INPUTS[:-1]), {0: rows, 1: slots}]
    return tuple(example), tuple(free)


class Int32Scorer(nn.Module):
    """A scorer that takes int32, as on the wire; PyTorch gathers by int64."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.scorer = PackedScorer(model)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        pool_positions: Tensor,
    ) -> Tensor:
        rows = (input_ids, token_type_ids, position_ids, segment_ids, pool_positions)
        scores_RS: Tensor = self.scorer(*(tensor.long() for tensor in rows))
        return scores_RS


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


@contextmanager
def _without_noise() -> Iterator[None]:
    """Silence the exporter's notes about itself: who builds an engine can do nothing about them."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # "torchvision is not installed"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: (rows|length|slots) will not be used", UserWarning)
        try:
            yield
        finally:
            log.setLevel(level)
