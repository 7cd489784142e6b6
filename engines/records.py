"""What the builders, the gate and the installer hand to each other.

Shapes: R rows, L token slots a row and S pairs at most a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from client.errors import DisRankerError
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch, PairEncodingConfig

INPUTS = PackedBatch._fields[:-1]  # the graph's inputs, all int32
OUTPUT = "scores"  # float32 [R, S]

Runner = Callable[[PackedBatch], FloatArray]  # a batch's rows to scores[R, S]


class EngineError(DisRankerError):
    """An engine cannot be built or installed; the message says how to mend it."""


class ParityError(DisRankerError):
    """An engine scores worse than its checkpoint; nothing of it is kept."""

    exit_code = 1
    label = "refused"


@dataclass(frozen=True)
class Dimensions:
    """What a build fixes: L, S, and the most rows that a request can fill (each document one)."""

    row_length: int
    slots_per_row: int
    max_rows: int

    @classmethod
    def of(cls, config: PairEncodingConfig) -> Dimensions:
        return cls(config.row_length, config.slots_per_row, config.max_documents)

    def width(self, tensor: str) -> int | None:
        """The last dimension of a tensor of the packed layout, None for any other tensor."""
        if tensor in (INPUTS[-1], OUTPUT):
            return self.slots_per_row
        return self.row_length if tensor in INPUTS else None


class Graph(NamedTuple):
    """An exported ONNX graph (its weights may lie beside it) and the types it computes in."""

    path: Path
    precision: str
    dimensions: Dimensions


@dataclass(frozen=True)
class Timing:
    """The engine's speed at one number of rows a call."""

    rows_per_call: int
    rows_per_second: float


@dataclass(frozen=True)
class Int8:
    """How many ``products`` with weights are in int8, from the ranges that were seen in the calibration's rows, and
    the names of those ``kept`` in higher precision because the gate's limits were exceeded with them."""

    products: int
    kept: tuple[str, ...]
    calibration_queries: int
    calibration_rows: int


@dataclass(frozen=True)
class CpuEngine:
    """How an engine runs on a processor, and what of it was measured on a machine of so many ``cores``.

    ``rest_in`` is the precision of all that is not in int8.
    """

    rest_in: str
    cores: int
    threads: int
    measured: tuple[Timing, ...]
    int8: Int8 | None


class BuiltEngine(NamedTuple):
    """An engine on disk, and what the gate runs to judge it.

    ``runs_in`` is the precision it really computes in, ``version`` its library's; ``judged`` says what
    ``run`` is: the engine, or what stands in for it where it cannot be opened. At most ``rows_per_call`` rows are
    run at a time (0: any number). ``cpu`` is for processors.
    ``plans`` are files by the compute capability of the GPUs that they are for, where there is one for each.
    """

    files: tuple[Path, ...]
    runs_in: str
    version: str
    run: Runner
    judged: str
    rows_per_call: int = 0
    cpu: CpuEngine | None = None
    plans: Mapping[str, str] = MappingProxyType({})


def in_chunks(run: Runner, rows: int) -> Runner:
    """``run`` on at most ``rows`` rows at a time."""

    def chunked(batch: PackedBatch) -> FloatArray:
        starts = range(0, len(batch.input_ids), rows)
        parts = (
            PackedBatch._make([*(array[start : start + rows] for array in batch[:-1]), batch.slots]) for start in starts
        )
        return np.concatenate([run(part) for part in parts])

    return chunked
