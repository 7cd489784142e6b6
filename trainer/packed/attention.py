"""How the tokens of packed rows attend: which of them see each other, and the kernel that computes it.

``dense`` is SDPA under a mask of whole rows. ``flex`` is FlexAttention (arXiv 2412.05496), which passes over the blocks
of a row in which no two tokens see each other. ``varlen`` is FlashAttention (arXiv 2307.08691) with each pair as a
sequence of its own.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from client.errors import DisRankerError
from trainer.packed.heads import has_late_interaction

Kernel = Literal["dense", "flex", "varlen"]
DENSE, FLEX, VARLEN = "packed_dense", "packed_flex", "packed_varlen"  # as transformers knows them
# Finite, and representable in float16: infinities turn empty rows into NaN.
MASKED = -30000.0
DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")  # of attention, by the names of the families


class KernelError(DisRankerError):
    """A kernel that a model or this machine does not have."""


class Visible(NamedTuple):
    """Which tokens of packed rows see each other: those of one pair, if causal only what comes before.

    With ``reach`` a token sees only those of its pair that are fewer places away than that. With ``sides`` it sees its
    own side, query or document, and the first token of the pair: without a start token, states of a document are poor.
    """

    segment_ids: Tensor  # [R, L]
    causal: bool
    reach: int | None = None
    sides: Tensor | None = None  # [R, L]

    def mask(self, dtype: torch.dtype, positions_RS: Tensor | None = None) -> Tensor:
        """Additive [R, 1, L, L], or [R, 1, S, L] for the tokens at ``positions_RS`` alone."""
        places = torch.arange(self.segment_ids.shape[1], device=self.segment_ids.device)
        own = self.segment_ids if positions_RS is None else torch.gather(self.segment_ids, 1, positions_RS)
        seen = own[:, :, None] == self.segment_ids[:, None, :]
        behind = (places[None] if positions_RS is None else positions_RS)[:, :, None] - places[None, None, :]
        if self.causal:
            seen = seen & (behind >= 0)
        if self.reach is not None:
            seen = seen & (behind.abs() < self.reach)
        if self.sides is not None:
            side = self.sides if positions_RS is None else torch.gather(self.sides, 1, positions_RS)
            seen = seen & ((side[:, :, None] == self.sides[:, None]) | self.begins()[:, None])
        return torch.where(seen, 0.0, MASKED).to(dtype)[:, None]

    def blocks(self) -> BlockMask:
        """The same for FlexAttention."""
        rows, length = self.segment_ids.shape
        begins = self.begins()

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = self.segment_ids[row, query] == self.segment_ids[row, key]
            if self.causal:
                same = same & (query >= key)
            if self.sides is not None:
                same = same & ((self.sides[row, query] == self.sides[row, key]) | begins[row, key])
            return same if self.reach is None else same & ((query - key).abs() < self.reach)

        return create_block_mask(seen, rows, None, length, length, device=str(self.segment_ids.device))

    def sequences(self) -> Sequences:
        """The same for a kernel that takes sequences, without sides; what a window cuts is the layer's to say."""
        starts = torch.nonzero(self.begins().flatten()).flatten()
        starts = torch.cat([starts, starts.new_tensor([self.segment_ids.numel()])])
        return Sequences(starts.int(), int(starts.diff().max()), self.causal)

    def begins(self) -> Tensor:
        """Whether [R, L] a token is the first of its pair."""
        return self.segment_ids != F.pad(self.segment_ids[:, :-1], (1, 0), value=-1)


class Sequences(NamedTuple):
    """Sequences in rows that are joined to one; the empty slots of a row are one, too."""

    starts: Tensor  # [N + 1], int32, with the end of the last
    longest: int
    causal: bool


def use_kernel(model: Any, kernel: Kernel, training: bool) -> None:
    """Let the model's layers attend by the kernel. Raises KernelError where they cannot."""
    family, can_set = model.config.model_type, model._can_set_attn_implementation()
    name = next((name for name in DROPOUTS if getattr(model.config, name, 0)), None) if training else None
    if kernel == "dense":
        if name and can_set and model.config._attn_implementation == "sdpa":  # which cannot cap logits, as Gemma 2 does
            model.set_attn_implementation(DENSE)
        return
    if name:
        share = getattr(model.config, name)
        raise KernelError(f"--attention {kernel} has no dropout, and this {family} model has {share:g} ({name})")
    if kernel == "varlen" and getattr(model.config, "attn_logit_softcapping", None):
        raise KernelError(f"--attention varlen cannot cap its logits, as this {family} model does")
    if kernel == "varlen" and has_late_interaction(model):
        raise KernelError("--attention varlen cannot keep query and document apart, as late interaction does")
    if not can_set or not model._supports_flex_attn:
        raise KernelError(f"--attention {kernel}: a {family} model has no attention but its own")
    model.set_attn_implementation({"flex": FLEX, "varlen": VARLEN}[kernel])


def check_kernel(kernel: Kernel, device: torch.device, lowered: bool, training: bool) -> None:
    """Raises KernelError for what the device cannot do; ``lowered`` says whether layers compute in bf16 or fp16."""
    if kernel == "flex" and training and device.type == "cpu":
        raise KernelError("--attention flex trains on GPUs only: it has no backward pass on a processor")
    if kernel == "varlen" and (device.type != "cuda" or not lowered):
        raise KernelError("--attention varlen needs an NVIDIA GPU, and bf16 or fp16")


def is_dense(model: Any) -> bool:
    return model.config._attn_implementation not in (FLEX, VARLEN)


def layer_inputs(model: Any, visible: dict[str, Visible]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The masks of the layers by their kind, and what else all layers take."""
    kernel = model.config._attn_implementation
    if kernel == FLEX:
        return {kind: tokens.blocks() for kind, tokens in visible.items()}, {}
    if kernel == VARLEN:
        return dict.fromkeys(visible), {"sequences": next(iter(visible.values())).sequences()}
    return {kind: tokens.mask(model.dtype) for kind, tokens in visible.items()}, {}


def dense_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """SDPA as transformers calls it: [R, heads, L, D] to [R, L, heads, D].

    On a processor SDPA has no fused kernel that drops out. It is written out here, with fewer random bits: a step of
    MiniLM is a fifth to a third faster (docs/bench.md).
    """
    if not dropout or query.device.type != "cpu" or query.shape[1] != key.shape[1]:
        more = {"scaling": scaling, "dropout": dropout, **settings}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return output, None
    query, key = query.to(value.dtype), key.to(value.dtype)
    logits_RHLL = (query * scaling) @ key.transpose(2, 3)
    logits_RHLL += attention_mask.to(value.dtype)
    weights_RHLL = torch.softmax(logits_RHLL, dim=-1, dtype=value.dtype) * kept(logits_RHLL.shape, dropout)
    output_RHLD = weights_RHLL @ (value / (1 - dropout))
    return output_RHLD.transpose(1, 2).contiguous(), None


def kept(shape: torch.Size, dropout: float) -> Tensor:
    """Whether each is kept, drawn with the probability 1 - ``dropout``, to within 2^-17, by 16 bits."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return (draws >= round(dropout * 2**16) - 2**15).reshape(shape)


def flex_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask, **settings: Any
) -> tuple[Tensor, None]:
    """As ``dense_attention``, without dropout."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones in float32
    output, _ = flex_attention_forward(module, query, key, value, attention_mask, **settings)
    return output, None


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    sequences: Sequences,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As ``flex_attention``; ``sliding_window`` counts a token itself."""
    (rows, _, length, _), grouped = query.shape, query.shape[1] != key.shape[1]
    query, key, value = (states.transpose(1, 2).flatten(0, 1).to(value.dtype) for states in (query, key, value))
    starts, longest, causal = sequences
    before = -1 if sliding_window is None else sliding_window - 1
    window = (before, 0 if causal else before)
    output: Any = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=window, enable_gqa=grouped
    )
    return output.unflatten(0, (rows, length)), None


AttentionInterface.register(DENSE, dense_attention)
AttentionInterface.register(FLEX, flex_attention)
AttentionInterface.register(VARLEN, varlen_attention)
