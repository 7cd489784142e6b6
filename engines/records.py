"""The records that the builders, the gate and the installer hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from client.errors import DisRankerError
from model_repository.student.runtime import packing
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import (
    INPUTS,
    FlatPairs,
    FloatArray,
    Layout,
    PairEncodingConfig,
    Rows,
    chunks,
    unpack,
)

OUTPUT = "scores"  # float32 [R, S]

Runner = Callable[[FlatPairs], FloatArray]  # scores[N] of any number of pairs
RowRunner = Callable[[Rows], FloatArray]  # scores[R, S] of packed rows


class EngineError(DisRankerError):
    """An engine cannot be built or installed; the message says how to mend it."""


class ParityError(DisRankerError):
    """An engine scores worse than its checkpoint; nothing of it is kept."""

    exit_code = 1
    label = "refused"


@dataclass(frozen=True)
class Dimensions:
    """Fixed per build.

    row_length: L.
    slots_per_row: S.
    max_rows: the most rows that a request can fill, which is the most documents that it can have.
    pool_last, position_offset: see ``Layout``.
    """

    row_length: int
    slots_per_row: int
    max_rows: int
    pool_last: bool = False
    position_offset: int = 0

    @classmethod
    def of(cls, config: PairEncodingConfig) -> Dimensions:
        layout = config.layout
        return cls(
            config.row_length, config.slots_per_row, config.max_documents, layout.pool_last, layout.position_offset
        )

    @property
    def layout(self) -> Layout:
        return Layout(self.row_length, self.slots_per_row, self.pool_last, self.position_offset)

    def width(self, tensor: str) -> int | None:
        """The last dimension of a tensor of the packed layout, None for any other tensor."""
        if tensor in (INPUTS[-1], OUTPUT):
            return self.slots_per_row
        return self.row_length if tensor in INPUTS else None


class Graph(NamedTuple):
    """An exported ONNX graph, whose weights may lie beside it, and the precision of its types."""

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
    """The int8 part of an engine.

    products: how many products with weights are in int8.
    kept: the names of those in higher precision, because with them the gate's limits were exceeded.
    full_range: whether weights use all of int8's range, which only processors with units for int8 compute rightly.
    """

    products: int
    kept: tuple[str, ...]
    calibration_queries: int
    calibration_rows: int
    full_range: bool = False


@dataclass(frozen=True)
class CpuEngine:
    """How an engine runs on a processor.

    rest_in: the precision of all that is not in int8.
    cores: those of the machine that built and measured it.
    """

    rest_in: str
    cores: int
    threads: int
    measured: tuple[Timing, ...]
    int8: Int8 | None


@dataclass(frozen=True)
class Trial:
    """An engine that ``--engine auto`` tried; what is not known of it is None or empty.

    documents_per_second: by the documents of a request.
    speed: the geometric mean of these.
    result: "installed", "passes" (it is slower), or why it was refused or not built.
    """

    engine: str
    precision: str
    result: str
    mean_kendall_tau: float | None = None
    ndcg_difference: float | None = None
    documents_per_second: dict[int, float] = field(default_factory=dict)
    speed: float | None = None


class BuiltEngine(NamedTuple):
    """An engine on disk, and what the gate runs to judge it.

    runs_in: the precision that it really computes in.
    version: the release of its library.
    judged: the name of what ``run`` runs: the engine, or its graph where the engine cannot be opened.
    rows_per_call: at most this many rows are run at a time; 0 for any number.
    cpu: only for processors.
    plans: the file for each compute capability, where there are several.
    """

    files: tuple[Path, ...]
    runs_in: str
    version: str
    run: Runner
    judged: str
    rows_per_call: int = 0
    cpu: CpuEngine | None = None
    plans: Mapping[str, str] = MappingProxyType({})


def packed(run: RowRunner, layout: Layout, rows_per_call: int) -> Runner:
    """A runner for an engine that takes packed rows, at most ``rows_per_call`` at a time."""

    def scores(pairs: FlatPairs) -> FloatArray:
        batch = layout.pack(pairs)
        return unpack(np.concatenate([run(rows) for rows in chunks(batch.rows, rows_per_call)]), batch.slots)

    return scores


def runner(scorer: PairScorer) -> Runner:
    """A runner for an engine as the server runs it."""

    def scores(pairs: FlatPairs) -> FloatArray:
        # The student's folder has a FlatPairs of its own, out of the same file.
        return scorer.score_all(
            packing.FlatPairs(pairs.token_ids, pairs.lengths, pairs.document_starts, pairs.truncated)
        )

    return scores
