"""The OpenVINO engine, for processors: the float32 graph, and the precision chosen when it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.records import INPUTS, OUTPUT, BuiltEngine, EngineError, Graph, Runner
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch

MODEL_FILE = "model.xml"


def library() -> Any:
    """The openvino module. Raises EngineError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError("the engine openvino is not installed: pip install 'disranker[cpu]'") from error
    return openvino


def runs_in(precision: str) -> str:
    """``precision`` where this processor has units for it, else ``fp32``, which it would compute in anyway."""
    capabilities = library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision if precision.upper() in capabilities else "fp32"


def build(graph: Graph, precision: str, rows_per_call: int, directory: Path) -> BuiltEngine:
    """Write ``model.xml`` and ``model.bin`` from a float32 graph, and open them as the server will."""
    openvino = library()
    model = openvino.Core().read_model(graph.path)
    for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
        port.get_tensor().set_names({name})  # the exporter's inner names go
    path = directory / MODEL_FILE
    openvino.save_model(model, path, compress_to_fp16=False)
    really = runs_in(precision)
    return BuiltEngine(
        files=(path, path.with_suffix(".bin")),
        runs_in=really,
        version=openvino.__version__,
        run=open_runner(path, really, rows_per_call),
        judged="the engine",
    )


def open_runner(path: Path, precision: str, rows_per_call: int) -> Runner:
    """An IR or ONNX file in the engine that the server has."""
    library()
    from model_repository.student.packed_engine import PackedEngine  # not before: it imports openvino at its top

    engine = PackedEngine(path, precision, rows_per_call)

    def run(batch: PackedBatch) -> FloatArray:
        return engine.score(batch[:-1])

    return run
