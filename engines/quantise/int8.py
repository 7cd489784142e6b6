"""int8 for processors: NNCF's post-training quantisation of the products with weights.

Attention's own products stay as they are, since their share is small and OpenVINO does not fuse them with the softmax
in int8. The score head stays too, and so does most of the last layer where it works on one token a pair.

Without VNNI a processor adds two products in 16 bits. With weights of the full int8 range it cuts large sums off
silently (seen: 65,280 where 8,258,048 is right). So there OpenVINO's weights use half of the range, and ONNX Runtime's
are fitted pair by pair, so that no sum is too large on any processor. With VNNI or AMX weights use all of the range;
processors without such units refuse that engine.
"""

from __future__ import annotations

import copy
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from engines.parity import Yardstick
from engines.quantise.calibration import Calibration, Row
from engines.records import EngineError, Int8, RowRunner, packed
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray

PRECISION = "int8"
RANKED_ON = 16  # rows that a product's share in the loss is measured on
ROWS_PER_CALL = 8  # of a candidate, in the judging


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
    """A library that runs graphs on processors, and a model in its own form.

    halves_weights: whether weights use half of the int8 range where a processor has no units for int8; else the library
    keeps their sums within 16 bits itself.
    """

    halves_weights = True

    @abstractmethod
    def products(self, model: Any) -> Products:
        """The candidates are products of all tokens. Those of one token a pair, as in most score heads and last layers,
        cost little and decide the score."""

    @abstractmethod
    def opened(self, model: Any) -> RowRunner:
        """The model as it stands, on all cores; what is not in int8 is computed as the server computes it."""


def downstream(operations: Iterable[Operation], tensor: str) -> set[str]:
    """Names of all operations that read of a tensor, at any distance; they come in the order of computation."""
    reached, readers = {tensor}, set[str]()
    for operation in operations:
        if reached.intersection(operation.inputs):
            reached.update(operation.outputs)
            readers.add(operation.name)
    return readers


def quantise(
    library: Library, model: Any, calibration: Calibration, yardstick: Yardstick, most_kept: int
) -> tuple[Any, Int8]:
    """A quantised model of the library, and what was done to it.

    If it exceeds the gate's limits, the 1, 2, 4, ... most sensitive products are left out, at most ``most_kept``,
    until the limits hold. The gate decides afterwards. Raises EngineError where NNCF is missing.
    """
    quantiser = _Quantiser(_nncf(), library, model, calibration.rows)
    if not quantiser.candidates:
        raise EngineError("int8: the graph has no products with weights; choose another --precision")
    kept: list[str] = []
    quantised = quantiser.without(kept)
    if _excess(yardstick, library, quantised) > 1:
        ranked = quantiser.most_sensitive_first()
        most = min(most_kept, len(ranked))
        for number in (*(2**power for power in range((most - 1).bit_length())), most):
            kept = ranked[:number]
            quantised = quantiser.without(kept)
            if _excess(yardstick, library, quantised) <= 1:
                break
    products = len(quantiser.candidates) - len(kept)
    return quantised, Int8(
        products, tuple(sorted(kept)), calibration.queries, len(calibration.rows), full_range=has_int8_units()
    )


class _Quantiser:
    """NNCF's quantisation of one model; ``candidates`` are the products that may be in int8, by name."""

    def __init__(self, nncf: Any, library: Library, model: Any, rows: Sequence[Row]) -> None:
        self._nncf, self._library, self._model, self._rows = nncf, library, model, rows
        self.candidates, self._others = library.products(model)

    def without(self, kept: Iterable[str], rows: int | None = None) -> Any:
        """The model with all candidates in int8 except those ``kept``, calibrated on the first ``rows``, or on all."""
        left_out = {*kept}
        if left_out == self.candidates:
            return self._model
        seen = self._rows[:rows]
        halved = self._library.halves_weights and not has_int8_units()
        return self._nncf.quantize(
            copy.deepcopy(self._model),
            self._nncf.Dataset(seen),
            subset_size=len(seen),
            target_device=self._nncf.TargetDevice.CPU,
            model_type=self._nncf.ModelType.TRANSFORMER,
            ignored_scope=self._nncf.IgnoredScope(names=sorted(self._others | left_out)),
            advanced_parameters=self._nncf.AdvancedQuantizationParameters(
                overflow_fix=self._nncf.OverflowFix.ENABLE if halved else self._nncf.OverflowFix.DISABLE
            ),
        )

    def most_sensitive_first(self) -> list[str]:
        """The candidates, ordered by how far each, alone in int8, moves the scores of the first calibration rows."""
        reference = self._scores(self._model)
        moved = {}
        for name in tqdm(sorted(self.candidates), desc="what int8 costs by product", unit="product"):
            alone = self._scores(self.without(self.candidates - {name}, RANKED_ON))
            moved[name] = float(np.square(alone - reference).mean())
        return sorted(moved, key=lambda name: -moved[name])

    def _scores(self, model: Any) -> FloatArray:
        """The scores of all pairs in the first calibration rows."""
        run = self._library.opened(model)
        rows = {name: np.concatenate([row[name] for row in self._rows[:RANKED_ON]]) for name in INPUTS}
        pairs_R = rows["segment_ids"].max(axis=1, keepdims=True)
        scores: FloatArray = run((*rows.values(),))[np.arange(rows["pool_positions"].shape[1]) < pairs_R]
        return scores


def _nncf() -> Any:
    os.environ["NNCF_CI"] = "1"  # otherwise NNCF reports each use to its makers over the network
    try:
        import nncf
    except ImportError as error:
        raise EngineError("int8 needs NNCF, which is not installed: pip install 'disranker[cpu]'") from error
    nncf.set_log_level(logging.ERROR)  # no notes for its developers
    return nncf


def _excess(yardstick: Yardstick, library: Library, model: Any) -> float:
    run = packed(library.opened(model), yardstick.layout, ROWS_PER_CALL)
    return max(yardstick.report(run, "a candidate").losses(PRECISION).values())
