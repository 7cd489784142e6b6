"""Engines for processors: the float32 graph, tuned for this machine's cores, and for int8 quantised.

int8 is in the graph itself; what it leaves is computed in bf16 where the library has it and the processor units for
it, else in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engines.builders.onnxruntime import OnnxRuntime
from engines.builders.openvino import OpenVino
from engines.builders.tuning import CANDIDATES, choose, measure
from engines.library import Library, runner
from engines.parity import Yardstick
from engines.quantise.calibration import Calibration
from engines.quantise.int8 import quantise
from engines.records import BuiltEngine, CpuEngine, Graph
from model_repository.student.processor_engine import ProcessorEngine, cores

LIBRARIES: dict[str, type[Library]] = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}  # by the names of ``--engine``


class CpuWish(NamedTuple):
    """What was asked for: rows per call, 0 to have them measured, and for int8 its calibration."""

    precision: str
    rows_per_call: int
    calibration: Calibration | None
    most_kept: int


def build(library: Library, graph: Graph, wish: CpuWish, yardstick: Yardstick, directory: Path) -> BuiltEngine:
    """Write the engine of a float32 graph, tune it, and open it as the server will.

    Raises EngineError where, for int8, NNCF is missing.
    """
    model = library.read(graph)
    really = rest = library.runs_in(wish.precision)
    int8 = None
    if really == "int8":
        assert wish.calibration is not None
        model, int8 = quantise(library, model, wish.calibration, yardstick, wish.most_kept)
        rest = library.runs_in("bf16")
    files = library.save(model, directory)
    opened = library.kind()(files[0], rest, cores())
    candidates = [wish.rows_per_call] if wish.rows_per_call else CANDIDATES
    largest = max((request.batch for request in yardstick.requests), key=lambda batch: len(batch.input_ids))
    timings = measure(opened, largest, candidates)
    best = choose(timings)
    run = runner(ProcessorEngine(opened, best.rows_per_call, graph.dimensions.row_length))
    cpu = CpuEngine(rest, cores(), cores(), tuple(timings), int8)
    return BuiltEngine(files, really, library.version, run, "the engine", best.rows_per_call, cpu)
