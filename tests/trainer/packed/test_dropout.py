"""Our own dropout: as many are kept as PyTorch's keeps, and what is kept is scaled alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.support.checkpoints import SMALL
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.packed.dropout import Dropout, use_own_dropout

SHAPE = (3, 7, 9999)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_and_scales_as_pytorch_does(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.full(SHAPE, 2.0, dtype=dtype, requires_grad=True)
    dropped = Dropout(share)(states)
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    is_kept = dropped != 0
    error = (share * (1 - share) / dropped.numel()) ** 0.5
    assert is_kept.double().mean().item() == pytest.approx(1 - share, abs=5 * error)
    expected = torch.tensor(2 / (1 - share), dtype=dtype)
    assert bool((dropped[is_kept] == expected).all())
    torch.testing.assert_close(gradient, is_kept * (1 / (1 - share)), check_dtype=False, rtol=1e-2, atol=0)
    assert not torch.equal(dropped, Dropout(share)(states))


def test_it_leaves_all_where_nothing_is_to_drop() -> None:
    states = torch.randn(SHAPE)
    assert torch.equal(Dropout(0.0)(states), states)
    assert torch.equal(Dropout(0.1).eval()(states), states)
    assert not Dropout(1.0)(states).any()


def test_all_of_a_model_drops_out_so() -> None:
    model: Any = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **SMALL))
    add_adapters(model, LoraArguments(lora_rank=2, lora_dropout=0.3), "drawn weights")
    use_own_dropout(model.eval())
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert shares == {0.1, 0.3}
    assert all(type(module) is Dropout for module in model.modules() if isinstance(module, nn.Dropout))
    assert not any(module.training for module in model.modules())
