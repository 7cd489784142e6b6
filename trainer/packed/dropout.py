"""Dropout that draws 16 bits for each number on a processor, where PyTorch's takes a good part of a training step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Elsewhere it is PyTorch's own."""

    def forward(self, states: Tensor) -> Tensor:
        if not (self.training and 0 < self.p < 1) or states.device.type != "cpu":
            return super().forward(states)
        return torch.where(kept(states.shape, self.p), states / (1 - self.p), 0.0)


def use_own_dropout(model: Any) -> None:
    """Let the model drop out so, between its layers and in its head."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


def kept(shape: torch.Size, dropout: float) -> Tensor:
    """Whether each number is kept, drawn with the probability 1 - ``dropout``, to within 2^-17."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return (draws >= round(dropout * 2**16) - 2**15).reshape(shape)
