"""Attention of packed rows by three kernels: what the trainer uses now, and what could replace it.

Shapes: R rows, L token slots a row, H heads, K heads of keys and values, D numbers of a head, T = R * L.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.spread import Spread
from bench.training_gpu.collection import pair_lengths
from bench.training_gpu.records import AbsentError, Machine, Result
from bench.training_gpu.sizes import Model, Sizes
from trainer.packed.forward import attention_mask


class Layer(NamedTuple):
    """What attention of one layer is given: rows full of pairs, in bfloat16."""

    query: Tensor  # [R, H, L, D]
    key: Tensor  # [R, K, L, D]
    value: Tensor  # [R, K, L, D]
    segment_ids: Tensor  # [R, L], from 1
    causal: bool

    @property
    def groups(self) -> int:
        """Heads of queries for one of keys."""
        return self.query.shape[1] // self.key.shape[1]


Attend = Callable[[], Tensor]  # -> [R, L, H, D]
Kernel = Callable[[Layer], Attend]  # makes masks: once a step, for all layers


def sdpa(layer: Layer) -> Attend:
    """As transformers calls it for the trainer, with the mask that ``packed_hidden`` makes."""
    mask = attention_mask(layer.segment_ids, layer.causal, layer.query.dtype)
    module: Any = SimpleNamespace(num_key_value_groups=layer.groups, is_causal=layer.causal)
    return lambda: sdpa_attention_forward(module, layer.query, layer.key, layer.value, mask)[0]


def flex(layer: Layer) -> Attend:
    """FlexAttention, compiled on a GPU; blocks of a row in which no two tokens share a pair are left out.

    Raises AbsentError on a CPU, where it has no backward pass.
    """
    on_gpu = layer.query.is_cuda
    if layer.query.requires_grad and not on_gpu:
        raise AbsentError("FlexAttention has no backward pass on a CPU")
    attend: Any = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    rows, length = layer.segment_ids.shape
    segment_ids = layer.segment_ids

    def visible(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = segment_ids[row, i] == segment_ids[row, j]
        return same & (i >= j) if layer.causal else same

    mask = create_block_mask(visible, rows, None, length, length, device=segment_ids.device)
    grouped = layer.groups > 1
    return lambda: attend(layer.query, layer.key, layer.value, block_mask=mask, enable_gqa=grouped).transpose(1, 2)


def varlen(layer: Layer) -> Attend:
    """The kernel for sequences of any length, of PyTorch or of flash-attn; a row's pairs are sequences.

    Raises AbsentError where neither is there.
    """
    if not layer.query.is_cuda:
        raise AbsentError("the variable-length kernels are for GPUs")
    starts, longest = sequences(layer.segment_ids)
    attend = _of_torch(layer) if find_spec("torch.nn.attention.varlen") else _of_flash_attn(layer)

    def packed() -> Tensor:
        states_THD = (states.transpose(1, 2).flatten(0, 1) for states in (layer.query, layer.key, layer.value))
        return attend(*states_THD, starts, starts, longest, longest).reshape(layer.query.transpose(1, 2).shape)

    return packed


def sequences(segment_ids: Tensor) -> tuple[Tensor, int]:
    """Where each pair of full rows [R, L] starts among all tokens, and the end, int32; the longest pair's length."""
    inner = torch.diff(segment_ids, dim=1, prepend=segment_ids.new_zeros(len(segment_ids), 1)) != 0
    starts = torch.nonzero(inner.flatten()).flatten()
    starts = torch.cat([starts, starts.new_tensor([segment_ids.numel()])])
    return starts.int(), int(starts.diff().max())


def _of_torch(layer: Layer) -> Callable[..., Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    takes_groups = "enable_gqa" in known  # from PyTorch 2.12 on
    settings: dict[str, Any] = {"is_causal": layer.causal}
    if "window_size" in known:  # took its place
        settings = {"window_size": (-1, 0 if layer.causal else -1)}
    if layer.groups > 1 and takes_groups:
        settings["enable_gqa"] = True
    repeats = 1 if takes_groups else layer.groups

    def attend(query: Tensor, key: Tensor, value: Tensor, *places: Any) -> Tensor:
        key, value = (states.repeat_interleave(repeats, dim=1) if repeats > 1 else states for states in (key, value))
        output = varlen_attn(query, key, value, *places, **settings)
        assert isinstance(output, Tensor)
        return output

    return attend


def _of_flash_attn(layer: Layer) -> Callable[..., Tensor]:
    if find_spec("flash_attn") is None:
        raise AbsentError(f"neither PyTorch {torch.__version__} nor a flash-attn package has a variable-length kernel")
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    return lambda *states_and_places: flash_attn_varlen_func(*states_and_places, causal=layer.causal)


KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "flex": flex, "varlen": varlen}


def attention(kernel: str, model: Model, row_length: int, sizes: Sizes, machine: Machine) -> Result:
    """Milliseconds of one layer, forward and backward, its tokens a second, and how far it is from SDPA's output.

    Raises AbsentError for a kernel that is not there.
    """
    torch.compiler.reset()  # kernels of other shapes would make this one recompile with shapes left open
    layer = drawn(model, row_length, machine)
    attend = KERNELS[kernel](layer)
    inputs = layer[:3]
    output = attend()
    with torch.no_grad():
        difference = (output - sdpa(layer)()).abs().max().item()
    gradient = torch.randn_like(output)
    del output
    machine.forget()
    seconds = machine.seconds(lambda: torch.autograd.grad(attend(), inputs, gradient), sizes.kernels)
    peak = machine.peak_gib()
    preparing = machine.seconds(lambda: KERNELS[kernel](layer), sizes.kernels)
    return Result(
        "measured",
        tokens_per_second=Spread.of([layer.segment_ids.numel() / each for each in seconds]),
        milliseconds=Spread.of([1000 * each for each in seconds]),
        peak_gib=peak,
        details={
            "rows": float(len(layer.segment_ids)),
            "mask_milliseconds": 1000 * Spread.of(preparing).median,  # once a step, for all layers
            "largest_difference_to_sdpa": difference,
        },
    )


def drawn(model: Model, row_length: int, machine: Machine) -> Layer:
    """A layer's attention at a training step's number of tokens, as many as the smallest step has."""
    heads = model.config["num_attention_heads"]
    groups = heads // model.config.get("num_key_value_heads", heads)
    width = model.config.get("head_dim", model.config["hidden_size"] // heads)
    segment_ids = full_rows(model, max(1, model.step_tokens[-1] // row_length), row_length).to(machine.device)
    query, key, value = (  # laid out as projections leave them
        torch.randn(len(segment_ids), row_length, count, width, dtype=torch.bfloat16, device=machine.device)
        .transpose(1, 2)
        .requires_grad_()
        for count in (heads, heads // groups, heads // groups)
    )
    return Layer(query, key, value, segment_ids, causal=model.config["model_type"] == "llama")


def full_rows(model: Model, rows: int, row_length: int) -> Tensor:
    """[R, L]: every row full, its last pair cut where the row ends."""
    lengths = torch.from_numpy(pair_lengths(model, rows * (3 * row_length // model.pair_tokens + 1)))
    per_row = lengths.reshape(rows, -1)
    ends = per_row.cumsum(dim=1)
    assert bool((ends[:, -1] >= row_length).all())
    return torch.searchsorted(ends, torch.arange(row_length).repeat(rows, 1), right=True) + 1
