"""ONNX Runtime, for processors: the float32 graph as it is exported, or with int8 products.

Even without units for int8 it is twice as fast in int8 as in float32; OpenVINO is not.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from engines.builders.processors import ProcessorBuilder
from engines.graph.onnx_graphs import replace
from engines.library import Operation, Products, downstream, missing, serving_class
from engines.records import Graph, RowRunner
from engines.table import ENGINES, Engine
from model_repository.student.runtime.graphs import cores
from model_repository.tokenizer.pair_encoding import INPUTS

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
PRODUCT = "MatMulIntegerToFloat"  # whole numbers in, float32 out, with scales and the bias that is added


class OnnxRuntime(ProcessorBuilder):
    """A model is a ModelProto; see ``Library``."""

    opset = 20  # it has Gelu in one operator
    rest_of_int8 = "fp32"

    def __init__(self, engine: Engine = ENGINES["onnxruntime"]) -> None:
        self.opens = serving_class(engine)
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise missing(engine, error) from error
        self._onnx, self.version = onnx, onnxruntime.__version__

    def read(self, graph: Graph) -> Any:
        model = self._onnx.load(graph.path)
        del model.graph.value_info[:]  # the exporter's shapes of inner tensors are not all true
        return model

    def copied(self, model: Any) -> Any:
        return copy.deepcopy(model)

    def products(self, model: Any) -> Products:
        weights = {tensor.name for tensor in model.graph.initializer}
        operations = (Operation(node.name, node.input, node.output) for node in model.graph.node)
        of_pairs = downstream(operations, INPUTS[-1])
        candidates = {
            node.name
            for node in model.graph.node
            if node.op_type == "MatMul" and node.input[1] in weights and node.name not in of_pairs
        }
        return Products(candidates, {node.name for node in model.graph.node} - candidates)

    def opened(self, model: Any) -> RowRunner:
        with tempfile.TemporaryDirectory(prefix="build_engines-") as work:
            (path, *_) = self.save(model, Path(work))
            engine = self.opens(path, "fp32", cores())

        return engine.infer

    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        path = directory / self.opens.file
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # it would be appended to
        self._onnx.save(in_integers(model), path, save_as_external_data=True, location=data.name)
        return path, data

    def computes_int8(self, opened: Any) -> bool:
        return True  # its operator for whole numbers has no other way


def in_integers(model: Any) -> Any:
    """A copy in which the products of quantised tensors are computed in whole numbers.

    NNCF converts a rounded tensor back to float32 before the product. ONNX Runtime recognises that in some places
    only; elsewhere it would multiply float32.
    """
    from onnx import helper, numpy_helper

    model = copy.deepcopy(model)
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    read_by: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            read_by.setdefault(name, []).append(node)
    nodes, signed, added = [], set[str](), set[str]()
    for node in graph.node:
        sides = [made_by.get(name) for name in node.input]
        if node.op_type == "MatMul" and all(side and side.op_type == "DequantizeLinear" for side in sides):
            (left, scale, zero), (right, *of_right) = ([*side.input] for side in sides if side)
            bias, result = _bias(node, read_by, weights)
            if bias:
                added.add(result)
            signed.add(zero)
            inputs = [left, right, scale, of_right[0], zero, "".join(of_right[1:]), bias]
            nodes.append(helper.make_node(PRODUCT, inputs, [result], name=node.name, domain=MICROSOFT))
        elif node.output[0] not in added:
            nodes.append(node)
    for name in signed:
        whole = numpy_helper.to_array(weights[name])
        if whole.dtype == np.int8:  # of activations ONNX Runtime is fast with unsigned ones
            weights[name].CopyFrom(numpy_helper.from_array((whole.astype(np.int32) + 128).astype(np.uint8), name))
    replace(graph.node, _read(nodes, {output.name for output in graph.output}))
    used = {name for node in graph.node for name in node.input}
    replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
    del graph.value_info[:]
    if signed:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def _bias(product: Any, read_by: dict[str, list[Any]], weights: dict[str, Any]) -> tuple[str, str]:
    """The bias that is added to a product, "" for none, and the name of the sum."""
    (output,) = product.output
    readers = read_by.get(output, [])
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = (name for name in readers[0].input if name != output)
        if other in weights and len(weights[other].dims) == 1:
            return other, readers[0].output[0]
    return "", output


def _read(nodes: list[Any], results: set[str]) -> list[Any]:
    """The nodes whose outputs are read."""
    kept: list[Any] = []
    wanted = set(results)
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
