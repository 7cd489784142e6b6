"""ONNX Runtime, for processors: the float32 graph as it is exported, or with int8 products.

Even without units for int8 it is twice as fast in int8 as in float32; OpenVINO is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from engines.builders.processors import ProcessorBuilder
from engines.quantise.int8 import Operation, Products, downstream
from engines.records import Graph
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.student.runtime.onnxruntime_engine import OnnxRuntimeEngine
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray

Int8Array = NDArray[np.int8]

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
PRODUCT = "MatMulIntegerToFloat"  # whole numbers in, float32 out, with scales and the bias that is added
LARGEST_SUM = 128  # of two weights that are added up in 16 bits, each times an activation of at most 255
COARSER = np.linspace(1, 2, 9, dtype=np.float32)  # scales that are tried for weights whose sums are too large


class OnnxRuntime(ProcessorBuilder):
    """A model is a ModelProto."""

    rest_of_int8 = "fp32"
    halves_weights = False  # they are fitted to 16 bits below, which costs less
    version = onnxruntime.__version__
    opens = OnnxRuntimeEngine

    def fitting(self) -> tuple[str, ...]:
        return "fp32", "int8"

    def read(self, graph: Graph) -> Any:
        model = onnx.load(graph.path)
        del model.graph.value_info[:]  # the exporter's shapes of inner tensors are not all true
        return model

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

    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        path = directory / self.opens.file
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # it would be appended to
        onnx.save(in_integers(model), path, save_as_external_data=True, location=data.name)
        return path, data


def in_integers(model: Any) -> Any:
    """A copy in which the products of quantised tensors are computed in whole numbers, rightly on this processor.

    NNCF converts a rounded tensor back to float32 before the product. ONNX Runtime recognises that in some places
    only; elsewhere it would multiply float32.
    """
    changed = ir.from_proto(model)
    zeros, sums_in_16_bits = set[Any](), not has_int8_units()
    for node in changed.graph:
        sides = [value and value.producer() for value in node.inputs]
        if node.op_type == "MatMul" and all(side and side.op_type == "DequantizeLinear" for side in sides):
            (left, scale, zero), (right, of_right, *right_zero) = (side.inputs for side in sides)
            result, bias = _with_bias(node)
            if sums_in_16_bits:
                weights, coarser = fitted_to_16_bits(right.const_value.numpy())
                right.const_value = ir.tensor(weights, name=right.name)
                of_right.const_value = ir.tensor(of_right.const_value.numpy() * coarser, name=of_right.name)
            inputs = [left, right, scale, of_right, zero, *(right_zero or [None]), bias]
            product = ir.node(PRODUCT, inputs, domain=MICROSOFT, name=node.name)
            ir.convenience.replace_nodes_and_values(
                changed.graph, result, [result], [product], result.outputs, product.outputs
            )
            zeros.add(zero)
            changed.opset_imports[MICROSOFT] = 1
    for zero in zeros:
        whole = zero.const_value.numpy()
        if whole.dtype == np.int8:  # of activations ONNX Runtime is fast with unsigned ones
            zero.const_value = ir.tensor((whole.astype(np.int32) + 128).astype(np.uint8), name=zero.name)
    RemoveUnusedNodesPass()(changed)
    proto = ir.to_proto(changed)
    del proto.graph.value_info[:]  # of before
    return proto


def fitted_to_16_bits(weights_KN: Int8Array) -> tuple[Int8Array, FloatArray]:
    """int8 weights whose sums a processor without units for int8 does not cut off, and the factors[N] of their scales.

    Such a processor multiplies rows 2k and 2k + 1 by activations of 0 to 255, and adds the two up in 16 bits. Few pairs
    reach beyond that. They are brought nearer to 0, or the column gets a coarser scale, whichever changes it least.
    """
    best_KN, factors_N = weights_KN.astype(np.int16), np.ones(weights_KN.shape[1], np.float32)
    least_N = np.full(weights_KN.shape[1], np.inf)
    for factor in COARSER:
        tried_KN = np.rint(weights_KN / factor).astype(np.int16)
        pairs = tried_KN[: len(tried_KN) // 2 * 2].reshape(-1, 2, tried_KN.shape[1])  # a view
        for sign in (1, -1):
            beyond = np.maximum((sign * pairs).clip(min=0).sum(axis=1) - LARGEST_SUM, 0)
            pairs[:, 0] -= sign * (beyond // 2)
            pairs[:, 1] -= sign * (beyond - beyond // 2)
        lost_N = np.square(tried_KN * factor - weights_KN).sum(axis=0)
        better_N = lost_N < least_N
        best_KN = np.where(better_N, tried_KN, best_KN)
        factors_N, least_N = np.where(better_N, factor, factors_N), np.minimum(lost_N, least_N)
    return best_KN.astype(np.int8), factors_N


def _with_bias(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The node that adds a bias to a product, and the bias; the product itself and None where nothing does."""
    readers = [*product.outputs[0].uses()]
    if len(readers) == 1 and readers[0].node.op_type == "Add":
        (other,) = (value for value in readers[0].node.inputs if value is not product.outputs[0])
        if other is not None and other.is_initializer() and len(other.shape or ()) == 1:
            return readers[0].node, other
    return product, None
