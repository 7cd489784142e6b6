"""Bare kernels: products of bf16 matrices, which are the ceiling, and attention of packed rows by three kernels.

Beside the letters of docs/glossary.md: A attention heads, K heads of keys and values, D numbers of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.gpu.records import AbsentError, Machine, Result
from bench.gpu.sizes import Model, Sizes
from trainer.checkpoints.layers import find_layers
from trainer.packed.attention import Kernel, Visible, flex_attention, varlen_attention

SQUARE = "ceiling/square"


def square(sizes: Sizes, machine: Machine) -> Result:
    """TFLOP/s of a product of two large square matrices. All shares are shares of it."""
    left, right = (_matrix(sizes.square, sizes.square, machine) for _ in range(2))
    seconds = machine.seconds(lambda: left @ right, sizes.kernels)
    return Result.timed(machine, seconds, flops=2 * sizes.square**3, size=sizes.square)


def own_matrices(model: Model, sizes: Sizes, machine: Machine) -> Result:
    """TFLOP/s of the matrices of a model's layers, each as often as the model has it, on the tokens of a step."""
    tokens, flops, rates = model.step_tokens[0], 0, dict[str, float]()
    seconds = np.zeros(sizes.kernels.rounds)
    with torch.device("meta"):
        matrices = find_layers(model.drawn()).linear().values()
    for (wide, narrow), count in Counter((each.in_features, each.out_features) for each in matrices).items():
        states_TH, weight = _matrix(tokens, wide, machine), _matrix(narrow, wide, machine)
        rounds = machine.seconds(partial(F.linear, states_TH, weight), sizes.kernels)
        rates[f"tflops_{wide}_to_{narrow}"] = 2 * tokens * wide * narrow / float(np.median(rounds)) / 1e12
        flops, seconds = flops + count * 2 * tokens * wide * narrow, seconds + count * rounds
    return Result.timed(machine, seconds, flops=flops, tokens_of_a_step=tokens, **rates)


def _matrix(rows: int, columns: int, machine: Machine) -> Tensor:
    """Drawn numbers, since a GPU multiplies zeros faster."""
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=machine.device)


class Layer(NamedTuple):
    """The inputs of one layer's attention: rows full of pairs."""

    query: Tensor  # [R, A, L, D]
    key: Tensor  # [R, K, L, D]
    value: Tensor  # [R, K, L, D]
    segment_ids: Tensor  # [R, L], from 1
    causal: bool

    @property
    def groups(self) -> int:
        """Heads of queries for each head of keys."""
        return self.query.shape[1] // self.key.shape[1]


Attend = Callable[[], Tensor]  # -> [R, L, A, D]


def kernel_of(kernel: Kernel, layer: Layer) -> Attend:
    """Call attention as the trainer does, through transformers, with what ``trainer.packed.attention`` gives it."""
    module: Any = SimpleNamespace(num_key_value_groups=layer.groups, is_causal=layer.causal, training=True)
    visible, states = Visible(layer.segment_ids, layer.causal), layer[:3]
    if kernel == "flex":
        return partial(_first, flex_attention, module, *states, visible.blocks())
    if kernel == "varlen":
        return partial(_first, varlen_attention, module, *states, None, sequences=visible.sequences())
    return partial(_first, sdpa_attention_forward, module, *states, visible.mask(layer.query.dtype))


def _first(attend: Callable[..., tuple[Tensor, Any]], *inputs: Any, **settings: Any) -> Tensor:
    return attend(*inputs, **settings)[0]


def attention(kernel: Kernel, model: Model, row_length: int, sizes: Sizes, machine: Machine) -> Result:
    """Milliseconds of one layer, forward and backward, and how far its output is from the dense kernel's.

    Raises AbsentError for a kernel that this machine does not have.
    """
    if kernel != "dense" and not machine.on_gpu:
        raise AbsentError(f"{kernel} attention is for GPUs")
    torch.compiler.reset()  # kernels of other shapes would make this one recompile with open shapes
    layer = drawn(model, row_length, machine)
    attend, inputs = kernel_of(kernel, layer), layer[:3]
    mask = machine.seconds(lambda: kernel_of(kernel, layer), sizes.kernels)  # made once a step, for all layers
    with torch.no_grad():
        output = attend()
        difference = (output - kernel_of("dense", layer)()).abs().max().item()
        forward = machine.seconds(attend, sizes.kernels)
    gradient = torch.randn_like(output)
    del output
    machine.forget()
    seconds = machine.seconds(lambda: torch.autograd.grad(attend(), inputs, gradient), sizes.kernels)
    return Result.timed(
        machine,
        seconds,
        layer.segment_ids.numel(),
        rows=len(layer.segment_ids),
        forward_milliseconds=1000 * float(np.median(forward)),
        mask_milliseconds=1000 * float(np.median(mask)),
        largest_difference_to_sdpa=difference,
    )


def drawn(model: Model, row_length: int, machine: Machine) -> Layer:
    """The attention of a layer on as many tokens as the smallest training step has."""
    heads = model.config["num_attention_heads"]
    key_heads = model.config.get("num_key_value_heads", heads)
    width = model.config.get("head_dim", model.config["hidden_size"] // heads)
    segment_ids = full_rows(model, max(1, model.step_tokens[-1] // row_length), row_length).to(machine.device)
    query, key, value = (  # laid out as projections leave them
        torch.randn(len(segment_ids), row_length, count, width, dtype=torch.bfloat16, device=machine.device)
        .transpose(1, 2)
        .requires_grad_()
        for count in (heads, key_heads, key_heads)
    )
    return Layer(query, key, value, segment_ids, causal=model.decoder)


def full_rows(model: Model, rows: int, row_length: int) -> Tensor:
    """Segment ids [R, L]. Every row is full, and its last pair is cut where the row ends."""
    lengths = torch.from_numpy(model.lengths(rows * (3 * row_length // model.pair_tokens + 1)))
    ends = lengths.reshape(rows, -1).cumsum(dim=1)
    assert bool((ends[:, -1] >= row_length).all())
    return torch.searchsorted(ends, torch.arange(row_length).repeat(rows, 1), right=True) + 1
