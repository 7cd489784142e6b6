"""The torch engine's items: rows in and scores out, text in and scores out, and what the GPU does meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

import bench.training_gpu.attention as layers
from bench.spread import Spread
from bench.training_gpu.collection import DOCUMENTS, encoder_of, groups_of
from bench.training_gpu.records import AbsentError, Machine, Result
from bench.training_gpu.sizes import Model, Sizes
from engines.builders.torch import export_program
from engines.records import Dimensions
from model_repository.student.runtime.torch_engine import TorchEngine
from model_repository.tokenizer.pair_encoding import FlatPairs, PackedBatch, PairEncoder
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup
from trainer.measures.costs import Work, flops_per_token

PRECISION = "bf16"
HOW: dict[str, dict[str, Any]] = {
    "eager": {"compiled": "never"},
    "compiled": {"compiled": "gpu", "graphs": False},
    "graphs": {"compiled": "gpu"},
}
LISTED = 8  # kernels that are named


class Request(NamedTuple):
    """Documents that fill ``rows`` of one call."""

    encoder: PairEncoder
    groups: list[QueryGroup]
    pairs: FlatPairs
    batch: PackedBatch


def request(model: Model, rows: int) -> Request:
    """As many documents as fill ``rows`` rows or almost."""
    encoder = encoder_of(model, model.row_lengths[0])
    groups = groups_of(model, encoder, -(-rows * model.row_lengths[0] // (model.pair_tokens * DOCUMENTS)))
    pairs = encode_groups(encoder, groups)
    batch = encoder.pack(pairs)
    while len(batch.input_ids) > rows:
        pairs = pairs[: -max(1, len(pairs) // 50)]
        batch = encoder.pack(pairs)
    return Request(encoder, groups, pairs, batch)


def engine(how: str, model: Model, sizes: Sizes, machine: Machine) -> Result:
    """Rows in the processor's memory to scores there. Raises AbsentError for what a CPU does not have."""
    if how != "eager" and machine.device.type != "cuda":
        raise AbsentError("on a processor the engine is compiled only if asked, and CUDA graphs are a GPU's")
    asked = request(model, sizes.scoring_rows)
    opened = _opened(model, asked.encoder, sizes, HOW[how])
    return _result(model, asked, lambda: opened.infer(asked.batch.rows), sizes, machine)


def _known(asked: Request, opened: TorchEngine) -> None:
    opened.infer(asked.encoder.pack(asked.pairs).rows)


def _text(asked: Request, opened: TorchEngine) -> None:
    pairs = encode_groups(asked.encoder, asked.groups)
    opened.infer(asked.encoder.pack(pairs[: len(asked.pairs)]).rows)


# With the tokens known, as they are where the token cache holds them, and from the text.
PATHS: dict[str, Callable[[Request, TorchEngine], None]] = {"known": _known, "text": _text}


def path(which: str, model: Model, sizes: Sizes, machine: Machine) -> Result:
    """Tokens or text to scores, one call after the other, by the engine as it is served."""
    asked = request(model, sizes.scoring_rows)
    opened = _opened(model, asked.encoder, sizes, {})
    return _result(model, asked, lambda: PATHS[which](asked, opened), sizes, machine)


def kernels(model: Model, sizes: Sizes, machine: Machine) -> Result:
    """What takes the device's time in the engine as it is served: the largest shares, by name."""
    asked = request(model, sizes.scoring_rows)
    opened = _opened(model, asked.encoder, sizes, {})
    opened.infer(asked.batch.rows)
    on_gpu = machine.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        for _ in range(sizes.steps.repeats):
            opened.infer(asked.batch.rows)
        machine.now()
    times = {
        event.key: float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in profiled.key_averages()
    }
    whole = sum(times.values())
    largest = sorted(times, key=lambda name: times[name], reverse=True)[:LISTED]
    return Result("measured", peak_gib=machine.peak_gib(), details={name[:80]: times[name] / whole for name in largest})


def attention(kernel: str, model: Model, sizes: Sizes, machine: Machine) -> Result:
    """Milliseconds of one layer's attention, forward alone. Raises AbsentError for a kernel that is not there."""
    if kernel == "flex" and machine.device.type != "cuda":
        raise AbsentError("FlexAttention is compiled for a GPU; as it is, it would say nothing of its speed")
    torch.compiler.reset()  # kernels of other shapes would make this one recompile with shapes left open
    drawn = layers.drawn(model, model.row_lengths[0], machine)
    layer = drawn._replace(query=drawn.query.detach(), key=drawn.key.detach(), value=drawn.value.detach())
    with torch.no_grad():
        attend = layers.KERNELS[kernel](layer)
        difference = (attend() - layers.sdpa(layer)()).abs().max().item()
        seconds = machine.seconds(attend, sizes.kernels)
    return Result(
        "measured",
        tokens_per_second=Spread.of([layer.segment_ids.numel() / each for each in seconds]),
        milliseconds=Spread.of([1000 * each for each in seconds]),
        peak_gib=machine.peak_gib(),
        details={"rows": float(len(layer.segment_ids)), "largest_difference_to_sdpa": difference},
    )


def _opened(model: Model, encoder: PairEncoder, sizes: Sizes, settings: dict[str, Any]) -> TorchEngine:
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "model.pt2"
        program.write_bytes(
            _program(tuple(model.config.items()), encoder.config.row_length, encoder.config.slots_per_row)
        )
        return TorchEngine(program, sizes.scoring_rows, **settings)


@cache  # the same for every item of a model
def _program(config: tuple[tuple[str, Any], ...], row_length: int, slots: int) -> bytes:
    settings = dict(config)
    set_seed(0)
    shape = AutoConfig.for_model(settings.pop("model_type"), num_labels=1, pad_token_id=0, **settings)
    scorer = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "model.pt2"
        export_program(scorer, Dimensions(row_length, slots, 1000), PRECISION, written)
        return written.read_bytes()


def _result(model: Model, asked: Request, run: Callable[[], object], sizes: Sizes, machine: Machine) -> Result:
    """FLOPs as the training bench counts them: attention over whole rows, empty slots too."""
    machine.forget()
    seconds = machine.seconds(run, sizes.steps)
    segment_ids = asked.batch.segment_ids
    work = Work(False, len(segment_ids), segment_ids.shape[1])
    flops = segment_ids.size * flops_per_token(model.shape(causal=False), work)
    documents = _rates(len(asked.pairs), seconds)
    return Result(
        "measured",
        tokens_per_second=Spread.of(_rates(segment_ids.size, seconds)),
        tflops=Spread.of([flops / each / 1e12 for each in seconds]),
        milliseconds=Spread.of([1000 * each for each in seconds]),
        peak_gib=machine.peak_gib(),
        details={
            "documents": float(len(asked.pairs)),
            "pairs_per_second": Spread.of(documents).median,
            "rows": float(len(segment_ids)),
            "row_fill": float((segment_ids > 0).mean()),
        },
    )


def _rates(count: int, seconds: Sequence[float]) -> list[float]:
    return [count / each for each in seconds]
