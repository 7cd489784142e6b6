"""int8 for processors: NNCF's post-training quantisation of the products with weights.

Attention's own products stay as they are: their share is small, and in int8 the processor plugin no longer
fuses them with the softmax. So does the score head, which works on one token a pair.

Weights use half of the int8 range. Without VNNI a processor adds two products in 16 bits: at the full range
the sum is cut off, silently (seen: 65,280 where 8,258,048 is right). At half the range nothing is lost
anywhere, so an engine scores alike on every processor, and the gate holds for all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from engines.calibration import Calibration
from engines.parity import ParityReport, Yardstick
from engines.records import INPUTS, OUTPUT, EngineError, Int8, Runner, in_chunks
from model_repository.tokenizer.pair_encoding import FloatArray, IntArray, PackedBatch

PRECISION = "int8"
ROWS = 8
RANKED_ON = 32  # requests at most that an operation's share in the loss is measured on


class Quantised(NamedTuple):
    """An OpenVINO model, and what was done to it."""

    model: Any
    int8: Int8


def quantise(model: Any, calibration: Calibration, yardstick: Yardstick, most_kept: int) -> Quantised:
    """Quantise an OpenVINO model; if the gate's limits are exceeded, undo up to ``most_kept`` operations, the
    most sensitive first, until they are kept.

    Whether they are kept in the end is for the gate to say. Raises EngineError where NNCF is missing.
    """
    nncf = _library()
    candidates, others = _products(model)
    if not candidates:
        raise EngineError("int8: the graph has no products with weights; choose another --precision")
    rows = nncf.Dataset(calibration.rows)
    settings = {
        "subset_size": len(calibration.rows),
        "target_device": nncf.TargetDevice.CPU,
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(names=sorted(others)),
    }
    with _quiet(nncf):
        quantised = nncf.quantize(model.clone(), rows, advanced_parameters=_parameters(nncf), **settings)
        if _report(yardstick, quantised).excess(PRECISION) > 1:
            quantised = _restored(nncf, model, rows, settings, yardstick, most_kept)
    done = {operation.get_friendly_name() for operation in quantised.get_ops() if _is_quantised(operation)}
    kept = tuple(sorted(candidates - done))
    return Quantised(quantised, Int8(len(candidates & done), kept, calibration.queries, len(calibration.rows)))


def _restored(nncf: Any, model: Any, rows: Any, settings: dict[str, Any], yardstick: Yardstick, most_kept: int) -> Any:
    requests = [request.batch for request in yardstick.requests]
    # SmoothQuant moves scales from activations into weights. NNCF puts the weights of an undone operation back
    # without them, and the scores become nonsense (seen with 3.4): so there is none where operations are undone.
    parameters = _parameters(nncf)
    parameters.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=-1)
    return nncf.quantize_with_accuracy_control(
        model,
        rows,
        nncf.Dataset(requests, _named),
        _loss(yardstick),
        max_drop=1.0,
        advanced_quantization_parameters=parameters,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=most_kept, ranking_subset_size=min(RANKED_ON, len(requests)), num_ranking_workers=1
        ),
        **settings,
    )


def _parameters(nncf: Any) -> Any:
    return nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)


def _library() -> Any:
    # Otherwise NNCF reports each use to its makers over the network.
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    except ImportError as error:
        raise EngineError("int8 needs NNCF, which is not installed: pip install 'disranker[cpu]'") from error
    return nncf


def _products(model: Any) -> tuple[set[str], set[str]]:
    """The names of the operations to quantise, and of the others that NNCF would."""
    scored = _downstream(model.input(INPUTS[-1]).get_node())
    candidates: set[str] = set()
    others: set[str] = set()
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "MatMul":
            name = operation.get_friendly_name()
            taken = name not in scored and _is_constant(operation.input_value(1).get_node())
            (candidates if taken else others).add(name)
        elif operation.get_type_name() == "Gather" and _is_constant(operation.input_value(0).get_node()):
            others.add(operation.get_friendly_name())  # embeddings: nothing is multiplied
    return candidates, others


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


def _is_quantised(operation: Any) -> bool:
    """Whether a product's weights are in int8: a constant of that type, on whose way there are but scales."""
    if operation.get_type_name() != "MatMul":
        return False
    node = operation.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().to_string() in ("i8", "u8")


def _named(batch: PackedBatch) -> dict[str, IntArray]:
    """What a request's share in the ranking of operations is measured on: its first rows."""
    return dict(zip(INPUTS, (array[:ROWS] for array in batch[:-1]), strict=True))


def _loss(yardstick: Yardstick) -> Any:
    """What NNCF calls for a model and requests: a number that falls with the gate's loss (1 where there is none),
    and the scores of each request's first rows.

    It is called for one request too, only to see what comes back: that number is not used.
    """

    def validate(compiled: Any, requests: Iterable[PackedBatch]) -> tuple[float, list[list[FloatArray]]]:
        run = _runner(compiled)
        first_rows = [[run(batch._replace(**_named(batch)))] for batch in requests]
        if len(first_rows) < len(yardstick.requests):
            return 0.0, first_rows
        return 1.0 - yardstick.report(run, "a candidate").excess(PRECISION), first_rows

    return validate


def _report(yardstick: Yardstick, model: Any) -> ParityReport:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return yardstick.report(_runner(compiled), "a candidate")


def _runner(compiled: Any) -> Runner:
    def run(batch: PackedBatch) -> FloatArray:
        return np.array(compiled(dict(zip(INPUTS, batch[:-1], strict=True)))[OUTPUT], dtype=np.float32)

    return in_chunks(run, ROWS)


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """NNCF's progress bars stay, its notes for developers go."""
    log = logging.getLogger("nncf")
    level = log.level
    nncf.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        nncf.set_log_level(level)
