"""The student's engines on one GPU: rows to scores, text to scores, and the kernels that take the time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.records import AbsentError, Machine, Result
from bench.gpu.sizes import DOCUMENTS, Model, Sizes
from engines.builders import tensorrt
from engines.builders.torch import export_program
from engines.graph.export import export_graph
from engines.records import Dimensions, EngineError
from model_repository.student.runtime.torch_engine import TorchEngine
from model_repository.tokenizer.pair_encoding import FlatPairs, PackedBatch, PairEncoder
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup
from trainer.measures.costs import Work, flops_per_token

PRECISION = "bf16"
TORCH: dict[str, dict[str, Any]] = {
    "eager": {"compiled": "never"},
    "compiled": {"compiled": "gpu", "graphs": False},
    "graphs": {"compiled": "gpu"},
}
ENGINES = (*TORCH, "tensorrt", "tensorrt_rtx")
SERVED = "graphs"  # the torch engine as it is served on a GPU
LISTED = 8  # kernels that are named

Score = Callable[[FlatPairs, PackedBatch], object]  # the same pairs, flat and packed: an engine takes one of them


class Request(NamedTuple):
    """Documents that fill the rows of one call, or almost."""

    encoder: PairEncoder
    groups: list[QueryGroup]
    pairs: FlatPairs
    batch: PackedBatch


def request(model: Model, rows: int) -> Request:
    encoder = model.encoder(model.row_lengths[0])
    groups = model.groups(-(-rows * model.row_lengths[0] // (model.pair_tokens * DOCUMENTS)))
    pairs = encode_groups(encoder, groups)
    batch = encoder.pack(pairs)
    while len(batch.input_ids) > rows:
        pairs = pairs[: -max(1, len(pairs) // 50)]
        batch = encoder.pack(pairs)
    return Request(encoder, groups, pairs, batch)


def engine(name: str, model: Model, sizes: Sizes, machine: Machine, start: str = "rows") -> Result:
    """Scores in the processor's memory, of ``rows`` there, of tokens (``known`` to the cache) or of ``text``.

    Raises AbsentError for an engine that this machine does not have.
    """
    if not (machine.on_gpu or name == "eager" or start != "rows"):
        raise AbsentError(f"{name} is for GPUs")
    asked = request(model, sizes.scoring_rows)
    with _opened(name, model, asked.encoder, sizes) as scored:

        def call() -> None:
            pairs = asked.pairs
            if start == "text":
                pairs = encode_groups(asked.encoder, asked.groups)[: len(pairs)]
            scored(pairs, asked.batch if start == "rows" else asked.encoder.pack(pairs))

        machine.forget()
        seconds = machine.seconds(call, sizes.steps)
    segment_ids = asked.batch.segment_ids
    # As in training: attention over whole rows, empty slots too.
    flops = flops_per_token(model.shape(), Work(False, len(segment_ids), segment_ids.shape[1]))
    return Result.timed(
        machine,
        seconds,
        segment_ids.size,
        segment_ids.size * flops,
        documents=len(asked.pairs),
        pairs_per_second=len(asked.pairs) / float(np.median(seconds)),
        rows=len(segment_ids),
        row_fill=float((segment_ids > 0).mean()),
    )


def kernels(model: Model, sizes: Sizes, machine: Machine) -> Result:
    """The shares of the device's time that the largest kernels take, by name."""
    asked = request(model, sizes.scoring_rows)
    with _opened(SERVED, model, asked.encoder, sizes) as scored:
        scored(asked.pairs, asked.batch)
        with profile(activities=[ProfilerActivity.CUDA if machine.on_gpu else ProfilerActivity.CPU]) as profiled:
            for _ in range(sizes.steps.repeats):
                scored(asked.pairs, asked.batch)
            machine.now()
    kind = "self_device_time_total" if machine.on_gpu else "self_cpu_time_total"
    times = {event.key: float(getattr(event, kind)) for event in profiled.key_averages()}
    largest = sorted(times, key=lambda name: times[name], reverse=True)[:LISTED]
    shares: dict[str, float | str] = {name[:80]: times[name] / sum(times.values()) for name in largest}
    return Result("measured", peak_gib=machine.peak_gib(), details=shares)


@contextmanager
def _opened(name: str, model: Model, encoder: PairEncoder, sizes: Sizes) -> Iterator[Score]:
    """An engine of drawn weights, built here. TensorRT's runner packs the pairs in every call."""
    dimensions = Dimensions(encoder.config.row_length, encoder.config.slots_per_row, sizes.scoring_rows)
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as directory:
        if name in TORCH:
            program = Path(directory) / "model.pt2"
            program.write_bytes(_program(model, dimensions))
            opened = TorchEngine(program, sizes.scoring_rows, **TORCH[name])
            yield lambda _, batch: opened.infer(batch.rows)
            return
        try:
            tensorrt.library(name)
        except EngineError as error:
            raise AbsentError(str(error)) from error
        graph = export_graph(model.drawn().eval(), dimensions, PRECISION, Path(directory) / "model.onnx")
        run = tensorrt.build(graph, name, (), Path(directory)).run
        yield lambda pairs, _: run(pairs)


@cache  # the same for every item of a model
def _program(model: Model, dimensions: Dimensions) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "model.pt2"
        export_program(model.drawn().eval(), dimensions, PRECISION, written)
        return written.read_bytes()
