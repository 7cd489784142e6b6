"""OpenVINO, for processors: IR from the float32 graph; precisions other than int8 are chosen when it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.library import Library, Products, runner
from engines.records import INPUTS, OUTPUT, EngineError, Graph, Runner, in_chunks
from model_repository.student.processor_engine import ProcessorEngine, cores
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch

ROWS = 8


class OpenVino(Library):
    """See ``Library``."""

    opset = 18

    def __init__(self) -> None:
        try:
            import openvino
        except ImportError as error:
            raise EngineError("the engine openvino is not installed: pip install 'disranker[cpu]'") from error
        from model_repository.student.openvino_engine import OpenVinoEngine, core

        self._openvino, self._engine, self._core = openvino, OpenVinoEngine, core()
        self.version = openvino.__version__

    def kind(self) -> Any:
        return self._engine

    def read(self, graph: Graph) -> Any:
        model = self._core.read_model(graph.path)
        for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
            port.get_tensor().set_names({name})  # the exporter's inner names go
        return model

    def copied(self, model: Any) -> Any:
        return model.clone()

    def products(self, model: Any) -> Products:
        of_pairs = _downstream(model.input(INPUTS[-1]).get_node())
        found = Products(set(), set())
        for operation in model.get_ordered_ops():
            name = operation.get_friendly_name()
            if operation.get_type_name() == "MatMul":
                taken = name not in of_pairs and _is_constant(operation.input_value(1).get_node())
                (found.candidates if taken else found.others).add(name)
            elif operation.get_type_name() == "Gather" and _is_constant(operation.input_value(0).get_node()):
                found.others.add(name)  # embeddings: nothing is multiplied
        return found

    def opened(self, model: Any) -> Runner:
        compiled = self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(batch: PackedBatch) -> FloatArray:
            return np.array(compiled(dict(zip(INPUTS, batch[:-1], strict=True)))[OUTPUT], dtype=np.float32)

        return in_chunks(run, ROWS)

    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        path = directory / self.kind().file()
        self._openvino.save_model(model, path, compress_to_fp16=False)
        return path, path.with_suffix(".bin")


def open_runner(graph: Graph, precision: str, rows_per_call: int) -> Runner:
    """An ONNX graph in the engine that the server has. Raises EngineError where OpenVINO is not installed."""
    opened = OpenVino().kind()(graph.path, precision, cores())
    engine = ProcessorEngine(opened, rows_per_call, graph.dimensions.row_length)
    return runner(engine)


def _downstream(node: Any) -> set[str]:
    """The names of all operations that read of a node, at any distance."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for output in waiting.pop().outputs():
            for target in output.get_target_inputs():
                reader = target.get_node()
                if reader.get_friendly_name() not in found:
                    found.add(reader.get_friendly_name())
                    waiting.append(reader)
    return found


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return bool(inputs) and all(_is_constant(value.get_node()) for value in inputs)
