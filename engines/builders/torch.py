"""The torch engine, for devices without another engine: the packed model as one exported program.

The server needs only PyTorch to run it, neither transformers nor the trainer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from engines.builders import Builder
from engines.graph.export import Int32Scorer, example_rows
from engines.graph.precision import FUSED, typed_model
from engines.job import BuildArguments, Job
from engines.records import BuiltEngine, Dimensions, EngineError, runner
from model_repository.student.runtime.graphs import EngineStartError
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.student.runtime.torch_engine import MODEL_FILE, TorchEngine

ROWS_PER_CALL = {"cuda": 64, "cpu": 8}  # a GPU needs some ten thousand tokens at a time to be busy
MOST_ROWS = 128  # the sizes 1, 2, 4 to 128 are eight, and PyTorch compiles a model for eight shapes at most


class Torch(Builder):
    """Writes ``model.pt2``, typed in the precision. Without ``--rows_per_call`` the device decides how many."""

    def check(self, arguments: BuildArguments) -> None:
        if arguments.rows_per_call > MOST_ROWS:
            raise EngineError(
                f"--rows_per_call {arguments.rows_per_call}: --engine torch takes at most {MOST_ROWS} rows a call"
            )

    def build(self, job: Job) -> BuiltEngine:
        arguments, path = job.arguments, job.directory / MODEL_FILE
        rows = arguments.rows_per_call or ROWS_PER_CALL["cuda" if torch.cuda.is_available() else "cpu"]
        export_program(job.model, job.dimensions, arguments.precision, path)
        try:
            engine = TorchEngine(path, rows, arguments.torch_compile)
        except EngineStartError as error:
            raise EngineError(str(error)) from error
        return BuiltEngine(
            files=(path,),
            runs_in=arguments.precision,
            version=torch.__version__,
            run=runner(PairScorer(engine, Layout(*job.dimensions.layout), rows)),
            judged="the engine",
            rows_per_call=rows,
        )


def export_program(model: PreTrainedModel, dimensions: Dimensions, precision: str, path: Path) -> None:
    """Write the program of a float32 scorer: ``INPUTS`` int32 to ``scores[R, S]`` float32, for any number of rows."""
    example, rows = example_rows(dimensions)
    with torch.no_grad():
        scorer = Int32Scorer(typed_model(model, precision, FUSED)).eval()
        program = torch.export.export(scorer, example, dynamic_shapes=rows, strict=False)
    torch.export.save(program, path)
