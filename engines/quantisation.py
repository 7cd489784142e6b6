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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from engines.calibration import Calibration, Row
from engines.parity import Yardstick
from engines.records import INPUTS, OUTPUT, EngineError, Int8, Runner, in_chunks
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch

PRECISION = "int8"
ROWS = 8
RANKED_ON = 16  # rows that a product's share in the loss is measured on
_NO_SLOTS = np.empty(0, dtype=np.int32)


class Quantised(NamedTuple):
    """An OpenVINO model, and what was done to it."""

    model: Any
    int8: Int8


def quantise(model: Any, calibration: Calibration, yardstick: Yardstick, most_kept: int) -> Quantised:
    """Quantise an OpenVINO model; if the gate's limits are exceeded, leave out products, the most sensitive first:
    1, 2, 4 and so on, at most ``most_kept``, until they are kept.

    Whether they are kept in the end is for the gate to say. Raises EngineError where NNCF is missing.
    """
    quantiser = _Quantiser(_library(), model, calibration.rows)
    if not quantiser.candidates:
        raise EngineError("int8: the graph has no products with weights; choose another --precision")
    kept: list[str] = []
    quantised = quantiser.without(kept)
    if _excess(yardstick, quantised) > 1:
        ranked = quantiser.most_sensitive_first()
        for number in _numbers(min(most_kept, len(ranked))):
            kept = ranked[:number]
            quantised = quantiser.without(kept)
            if _excess(yardstick, quantised) <= 1:
                break
    products = len(quantiser.candidates) - len(kept)
    return Quantised(quantised, Int8(products, tuple(sorted(kept)), calibration.queries, len(calibration.rows)))


class _Quantiser:
    """NNCF's quantisation of one model; ``candidates`` are the products that may be in int8, by name."""

    def __init__(self, nncf: Any, model: Any, rows: Sequence[Row]) -> None:
        self._nncf, self._model, self._rows = nncf, model, rows
        self.candidates, self._others = _products(model)

    def without(self, kept: Iterable[str], rows: int | None = None) -> Any:
        """The model with all candidates in int8 but those ``kept``, calibrated on all rows or on the first ``rows``."""
        left_out = {*kept}
        if left_out == self.candidates:
            return self._model
        seen = self._rows[:rows]
        with _quiet(self._nncf):
            return self._nncf.quantize(
                self._model.clone(),
                self._nncf.Dataset(seen),
                subset_size=len(seen),
                target_device=self._nncf.TargetDevice.CPU,
                model_type=self._nncf.ModelType.TRANSFORMER,
                ignored_scope=self._nncf.IgnoredScope(names=sorted(self._others | left_out)),
                advanced_parameters=self._nncf.AdvancedQuantizationParameters(
                    overflow_fix=self._nncf.OverflowFix.ENABLE
                ),
            )

    def most_sensitive_first(self) -> list[str]:
        """The candidates, by how far each alone in int8 moves the scores of the first calibration rows."""
        reference = self._scores(self._model)
        moved = {}
        for name in tqdm(sorted(self.candidates), desc="what int8 costs by product", unit="product"):
            alone = self._scores(self.without(self.candidates - {name}, RANKED_ON))
            moved[name] = float(np.square(alone - reference).mean())
        return sorted(moved, key=lambda name: -moved[name])

    def _scores(self, model: Any) -> FloatArray:
        """Of all pairs in the first calibration rows."""
        run = _opened(model)
        rows = PackedBatch._make(
            [*(np.concatenate([row[name] for row in self._rows[:RANKED_ON]]) for name in INPUTS), _NO_SLOTS]
        )
        places = np.arange(rows.pool_positions.shape[1])
        scores: FloatArray = run(rows)[places < rows.segment_ids.max(axis=1, keepdims=True)]
        return scores


def _numbers(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


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


def _excess(yardstick: Yardstick, model: Any) -> float:
    return yardstick.report(_opened(model), "a candidate").excess(PRECISION)


def _opened(model: Any) -> Runner:
    from model_repository.student.packed_engine import core  # not before: it imports openvino at its top

    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: PackedBatch) -> FloatArray:
        return np.array(compiled(dict(zip(INPUTS, batch[:-1], strict=True)))[OUTPUT], dtype=np.float32)

    return in_chunks(run, ROWS)


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """NNCF's notes for developers go."""
    log = logging.getLogger("nncf")
    level = log.level
    nncf.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        nncf.set_log_level(level)
