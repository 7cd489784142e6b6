"""The libraries that run graphs on processors, as the builders see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from engines.records import Graph, Runner
from model_repository.student.processor_engine import OpenedGraph, ProcessorEngine
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch


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


def runner(engine: ProcessorEngine) -> Runner:
    """The engine as the gate runs it."""

    def run(batch: PackedBatch) -> FloatArray:
        return engine.score_packed(batch[:-1])

    return run
