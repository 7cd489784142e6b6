"""A scorer with its precision in its types, as strongly typed engines want it. In shapes: H heads, each D wide."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = "softmax_in_float32"  # written out, for builders that take operators one by one
FUSED = "sdpa"  # PyTorch's own kernels, which keep the softmax in float32 inside


def typed_model(model: PreTrainedModel, precision: str, attention_kind: str = ATTENTION) -> PreTrainedModel:
    """A copy of a float32 model whose body computes in ``precision`` (a key of ``DTYPES``).

    Norms and softmax stay in float32, since half precision overflows there. The score head does too, since rounding
    would tie scores; it costs little.
    """
    typed = copy.deepcopy(model)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    typed.set_attn_implementation(attention_kind)
    if precision == "fp32":
        return typed
    body = typed.base_model
    for parameter in body.parameters():  # buffers, such as rotary frequencies, keep float32
        parameter.data = parameter.data.to(DTYPES[precision])
    for parent in list(body.modules()):
        _wrap(parent, [name for name, child in parent.named_children() if _is_norm(child)], cast_back=True)
    _wrap(body, [name for name, _ in body.named_children() if name == "pooler"], cast_back=False)
    return typed


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, [R, H, L, D] to [R, L, H, D], with mask and softmax in float32."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    logits_RHLL = torch.matmul(query * scaling, key.transpose(2, 3)).float() + attention_mask.float()
    mixed_RHLD = torch.matmul(logits_RHLL.softmax(dim=-1).to(value.dtype), value)
    return mixed_RHLD.transpose(1, 2).contiguous(), None


class _InFloat32(nn.Module):
    """A module that computes in float32 within a body that does not."""

    def __init__(self, module: nn.Module, cast_back: bool) -> None:
        super().__init__()
        self.module = module.float()
        self.cast_back = cast_back

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.module(hidden.float())
        return result.to(hidden.dtype) if self.cast_back else result


def _wrap(parent: nn.Module, names: list[str], cast_back: bool) -> None:
    for name in names:
        setattr(parent, name, _InFloat32(getattr(parent, name), cast_back))


def _is_norm(module: nn.Module) -> bool:
    """Families write RMSNorm classes of their own; only the end of the name is common."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
