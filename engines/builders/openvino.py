"""OpenVINO, for processors: IR from the float32 graph. A precision other than int8 is chosen when it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.builders.processors import ProcessorBuilder
from engines.library import Operation, Products, downstream, runner, serving_class
from engines.records import OUTPUT, Graph, RowRunner, Runner
from engines.table import ENGINES, Engine
from model_repository.student.runtime.graphs import cores
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray, Rows


class OpenVino(ProcessorBuilder):
    """A model is OpenVINO's own; see ``Library``."""

    opset = 18
    rest_of_int8 = "bf16"

    def __init__(self, engine: Engine = ENGINES["openvino"]) -> None:
        self.opens = serving_class(engine)
        import openvino

        from model_repository.student.runtime.openvino_engine import core

        self._openvino, self._core = openvino, core()
        self.version = openvino.__version__

    def read(self, graph: Graph) -> Any:
        model = self._core.read_model(graph.path)
        for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
            port.get_tensor().set_names({name})  # the exporter's inner names go
        return model

    def copied(self, model: Any) -> Any:
        return model.clone()

    def products(self, model: Any) -> Products:
        operations = model.get_ordered_ops()
        of_pairs = downstream(map(_operation, operations), model.input(INPUTS[-1]).get_node().get_friendly_name())
        found = Products(set(), set())
        for operation in operations:
            name = operation.get_friendly_name()
            if operation.get_type_name() == "MatMul":
                taken = name not in of_pairs and _is_constant(operation.input_value(1).get_node())
                (found.candidates if taken else found.others).add(name)
            elif operation.get_type_name() == "Gather" and _is_constant(operation.input_value(0).get_node()):
                found.others.add(name)  # embeddings: nothing is multiplied
        return found

    def opened(self, model: Any) -> RowRunner:
        compiled = self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(rows: Rows) -> FloatArray:
            return np.array(compiled(dict(zip(INPUTS, rows, strict=True)))[OUTPUT], dtype=np.float32)

        return run

    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        path = directory / self.opens.file
        self._openvino.save_model(model, path, compress_to_fp16=False)
        return path, path.with_suffix(".bin")

    def computes_int8(self, opened: Any) -> bool:
        operations = [operation.get_rt_info() for operation in opened.compiled.get_runtime_model().get_ops()]
        products = [info for info in operations if info["layerType"].get() == "FullyConnected"]
        return any(info["runtimePrecision"].get() in ("i8", "u8") for info in products)


def open_runner(graph: Graph, precision: str, rows_per_call: int) -> Runner:
    """Open an ONNX graph in the server's engine. Raises EngineError where OpenVINO is not installed."""
    opened = OpenVino().opens(graph.path, precision, cores())
    return runner(PairScorer(opened, Layout(*graph.dimensions.layout), rows_per_call))


def _operation(node: Any) -> Operation:
    name = node.get_friendly_name()
    return Operation(name, [value.get_node().get_friendly_name() for value in node.input_values()], [name])


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return bool(inputs) and all(_is_constant(value.get_node()) for value in inputs)
