"""The libraries that run graphs on processors, as the builders and the quantiser see them."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from engines.records import EngineError, Graph, RowRunner, Runner
from engines.table import Engine
from model_repository.student.runtime import packing
from model_repository.student.runtime.graphs import ProcessorGraph
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray


class Products(NamedTuple):
    """Names of a graph's operations: the products with weights that int8 may take, and others that NNCF would take."""

    candidates: set[str]
    others: set[str]


class Operation(NamedTuple):
    """An operation of a graph, and the names of the tensors that it reads and writes."""

    name: str
    inputs: Iterable[str]
    outputs: Iterable[str]


class Library(ABC):
    """A library that runs graphs on processors. A model is a graph in the library's own form.

    opset: the ONNX operators that it reads.
    rest_of_int8: the precision that is asked for where int8 leaves a product.
    opens: the class that opens a model's file, here and in the server.
    """

    opset: int
    rest_of_int8: str
    version: str
    opens: type[ProcessorGraph]

    @abstractmethod
    def read(self, graph: Graph) -> Any:
        """The model, its tensors named as on the wire."""

    @abstractmethod
    def copied(self, model: Any) -> Any:
        """A copy that may be changed."""

    @abstractmethod
    def products(self, model: Any) -> Products:
        """The candidates are products of all tokens. The score head and most of the last layer work on one token a
        pair only: they cost little, and decide the score."""

    @abstractmethod
    def opened(self, model: Any) -> RowRunner:
        """The model as it stands, on all cores."""

    @abstractmethod
    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        """Write the model's files; ``opens`` takes the first."""

    @abstractmethod
    def computes_int8(self, opened: Any) -> bool:
        """Whether an opened graph has products that this processor computes in 8 bits, as the library reports it."""


def downstream(operations: Iterable[Operation], tensor: str) -> set[str]:
    """Names of all operations that read of a tensor, at any distance; they come in the order of computation."""
    reached, readers = {tensor}, set[str]()
    for operation in operations:
        if reached.intersection(operation.inputs):
            reached.update(operation.outputs)
            readers.add(operation.name)
    return readers


def serving_class(engine: Engine) -> Any:
    """The class that serves an engine in Triton's Python backend. Raises EngineError where its library is missing."""
    module, _, name = engine.served_by.partition(".")
    try:
        return getattr(importlib.import_module(f"model_repository.student.runtime.{module}"), name)
    except ImportError as error:
        raise missing(engine, error) from error


def missing(engine: Engine, error: ImportError) -> EngineError:
    """The error for a library that is not installed."""
    return EngineError(
        f"the engine {engine.name} needs {error.name}, which is not installed: pip install {engine.install}"
    )


def runner(scorer: PairScorer) -> Runner:
    """The engine as the server runs it."""

    def run(pairs: FlatPairs) -> FloatArray:
        # The student's folder has a FlatPairs of its own, out of the same file.
        return scorer.score_all(
            packing.FlatPairs(pairs.token_ids, pairs.lengths, pairs.document_starts, pairs.truncated)
        )

    return run
