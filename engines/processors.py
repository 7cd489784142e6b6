"""Engines for processors: the float32 graph, tuned for this machine's cores, and for int8 quantised.

int8 is in the graph itself; what it leaves is computed in bf16 where the library has it and the processor units for
it, else in fp32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from engines.calibration import Calibration
from engines.parity import Yardstick
from engines.records import BuiltEngine, CpuEngine, Graph, Runner
from engines.tuning import CANDIDATES, choose, measure
from model_repository.student.processor_engine import OpenedGraph, ProcessorEngine, cores
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch


class CpuWish(NamedTuple):
    """What was asked for: rows per call, 0 to have them measured, and for int8 its calibration."""

    precision: str
    rows_per_call: int
    calibration: Calibration | None
    most_kept: int


class Products(NamedTuple):
    """Names of a graph's operations: the products with weights that int8 may take, and the other ones that NNCF
    would."""

    candidates: set[str]
    others: set[str]


class Library(ABC):
    """What runs graphs on processors: OpenVINO or ONNX Runtime. A model is a graph in the library's own form.

    Raises EngineError where it is not installed.
    """

    opset: int  # of the graph that it reads
    version: str

    @abstractmethod
    def kind(self) -> type[OpenedGraph]:
        """What opens the model's file, here and in the server."""

    @abstractmethod
    def read(self, graph: Graph) -> Any:
        """The model, its tensors named as on the wire."""

    @abstractmethod
    def copied(self, model: Any) -> Any:
        """One that may be changed."""

    @abstractmethod
    def products(self, model: Any) -> Products:
        """Those to quantise are of all tokens: what works on one token a pair (the score head, most of the last
        layer) costs little, and decides."""

    @abstractmethod
    def opened(self, model: Any) -> Runner:
        """The model as it stands, on all cores."""

    @abstractmethod
    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        """Its files; the first is what ``kind`` opens."""

    def runs_in(self, precision: str) -> str:
        """``precision`` where this processor has units for it, else the best that it has: bf16 for int8, then fp32,
        which it would compute in anyway."""
        if precision in self.kind().units():
            return precision
        return self.runs_in("bf16") if precision == "int8" else "fp32"


def build(library: Library, graph: Graph, wish: CpuWish, yardstick: Yardstick, directory: Path) -> BuiltEngine:
    """Write the engine of a float32 graph, tune it, and open it as the server will.

    Raises EngineError where, for int8, NNCF is missing.
    """
    from engines.quantisation import quantise  # not before: it needs Library

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


def runner(engine: ProcessorEngine) -> Runner:
    """The engine as the gate runs it."""

    def run(batch: PackedBatch) -> FloatArray:
        return engine.score_packed(batch[:-1])

    return run
