"""The OpenVINO engine, for processors: the float32 graph, and the precision chosen when it is compiled.

int8 is in the graph itself; what it leaves is computed in bf16 where the processor has units for it, else fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from engines.calibration import Calibration
from engines.parity import Yardstick
from engines.quantisation import quantise
from engines.records import INPUTS, OUTPUT, BuiltEngine, CpuEngine, EngineError, Graph, Runner
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch

MODEL_FILE = "model.xml"


class CpuWish(NamedTuple):
    """What was asked for: rows per call, 0 to have them measured, and for int8 its calibration."""

    precision: str
    rows_per_call: int
    calibration: Calibration | None
    most_kept: int


def library() -> Any:
    """The openvino module. Raises EngineError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError("the engine openvino is not installed: pip install 'disranker[cpu]'") from error
    return openvino


def runs_in(precision: str) -> str:
    """``precision`` where this processor has units for it, else the best that it has: bf16 for int8, then fp32,
    which it would compute in anyway."""
    library()
    from model_repository.student.packed_engine import units  # not before: it imports openvino at its top

    if precision in units():
        return precision
    return runs_in("bf16") if precision == "int8" else "fp32"


def build(graph: Graph, wish: CpuWish, yardstick: Yardstick, directory: Path) -> BuiltEngine:
    """Write ``model.xml`` and ``model.bin`` from a float32 graph, tune them, and open them as the server will.

    Raises EngineError where the library, or for int8 NNCF, is missing.
    """
    openvino = library()
    from engines.tuning import CANDIDATES, choose, measure
    from model_repository.student.packed_engine import core, cores

    model = core().read_model(graph.path)
    for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
        port.get_tensor().set_names({name})  # the exporter's inner names go
    really, rest, int8 = runs_in(wish.precision), runs_in(wish.precision), None
    if really == "int8":
        assert wish.calibration is not None
        model, int8 = quantise(model, wish.calibration, yardstick, wish.most_kept)
        rest = runs_in("bf16")
    path = directory / MODEL_FILE
    openvino.save_model(model, path, compress_to_fp16=False)
    candidates = [wish.rows_per_call] if wish.rows_per_call else CANDIDATES
    largest = max((request.batch for request in yardstick.requests), key=lambda batch: len(batch.input_ids))
    timings = measure(path, rest, largest, candidates)
    best = choose(timings)
    run = open_runner(path, rest, best.rows_per_call)
    cpu = CpuEngine(rest, cores(), cores(), tuple(timings), int8)
    files = (path, path.with_suffix(".bin"))
    return BuiltEngine(files, really, openvino.__version__, run, "the engine", best.rows_per_call, cpu)


def open_runner(path: Path, precision: str, rows_per_call: int) -> Runner:
    """An IR or ONNX file in the engine that the server has."""
    library()
    from model_repository.student.packed_engine import PackedEngine

    engine = PackedEngine(path, precision, rows_per_call)

    def run(batch: PackedBatch) -> FloatArray:
        return engine.score(batch[:-1])

    return run
