"""OpenVINO, for processors: IR from the float32 graph. A precision other than int8 is chosen when it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from engines.builders.processors import ProcessorBuilder
from engines.quantise.int8 import Operation, Products, downstream
from engines.records import OUTPUT, Graph
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.student.runtime.openvino_engine import OpenVinoEngine, core
from model_repository.tokenizer.pair_encoding import INPUTS


class OpenVino(ProcessorBuilder):
    """A model is OpenVINO's own."""

    rest_of_int8 = "bf16"
    version = openvino.__version__
    opens = OpenVinoEngine

    def fitting(self) -> tuple[str, ...]:
        bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "fp32", *["bf16"] * bf16, *["int8"] * has_int8_units()  # without units int8 was slower than float32

    def read(self, graph: Graph) -> Any:
        model = core().read_model(graph.path)
        for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
            port.get_tensor().set_names({name})  # the exporter's inner names go
        return model

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

    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        path = directory / self.opens.file
        openvino.save_model(model, path, compress_to_fp16=False)
        return path, path.with_suffix(".bin")


def _operation(node: Any) -> Operation:
    name = node.get_friendly_name()
    return Operation(name, [value.get_node().get_friendly_name() for value in node.input_values()], [name])


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return bool(inputs) and all(_is_constant(value.get_node()) for value in inputs)
