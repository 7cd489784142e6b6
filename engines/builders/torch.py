"""The torch engine, for devices without another: the packed model as one exported program.

The server needs PyTorch alone to run it: neither transformers nor our trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from engines.graph.export import Int32Scorer, example_rows
from engines.graph.precision import FUSED, typed_model
from engines.records import BuiltEngine, Dimensions, EngineError, Runner
from model_repository.student.torch_engine import MODEL_FILE, EngineStartError, TorchEngine
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch

Compile = Literal["gpu", "always", "never"]
ROWS_PER_CALL = {"cuda": 64, "cpu": 8}  # a GPU needs some ten thousand tokens at a time to be busy
MOST_ROWS = 128  # the sizes 1, 2, 4 to 128 are eight, and PyTorch compiles a model for eight shapes at most


def check_rows(rows_per_call: int) -> None:
    """Raises EngineError for more rows a call than there are sizes to compile for."""
    if rows_per_call > MOST_ROWS:
        raise EngineError(f"--rows_per_call {rows_per_call}: --engine torch takes at most {MOST_ROWS} rows a call")


def build(
    model: PreTrainedModel,
    dimensions: Dimensions,
    precision: str,
    rows_per_call: int,
    compiled: Compile,
    directory: Path,
) -> BuiltEngine:
    """Write ``model.pt2`` of a float32 scorer, typed in ``precision``, and open it as the server will here.

    ``rows_per_call`` 0 leaves the choice to the device. Raises EngineError for an engine that does not start.
    """
    path, rows = directory / MODEL_FILE, rows_per_call or default_rows()
    export_program(model, dimensions, precision, path)
    return BuiltEngine(
        files=(path,),
        runs_in=precision,
        version=torch.__version__,
        run=open_runner(path, rows, compiled),
        judged="the engine",
        rows_per_call=rows,
    )


def export_program(model: PreTrainedModel, dimensions: Dimensions, precision: str, path: Path) -> None:
    """Write a float32 scorer's program, ``INPUTS`` int32 to ``scores[R, S]`` float32, its rows free."""
    example, rows = example_rows(dimensions)
    with torch.no_grad():
        scorer = Int32Scorer(typed_model(model, precision, FUSED)).eval()
        program = torch.export.export(scorer, example, dynamic_shapes=rows, strict=False)
    torch.export.save(program, path)


def default_rows() -> int:
    return ROWS_PER_CALL["cuda" if torch.cuda.is_available() else "cpu"]


def open_runner(path: Path, rows_per_call: int, compiled: Compile) -> Runner:
    try:
        engine = TorchEngine(path, rows_per_call, compiled)
    except EngineStartError as error:
        raise EngineError(str(error)) from error

    def run(batch: PackedBatch) -> FloatArray:
        return engine.score(batch[:-1])

    return run
