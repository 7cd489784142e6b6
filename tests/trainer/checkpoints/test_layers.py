"""Models that keep some of their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, ModernBertConfig, Qwen3Config

from tests.support.checkpoints import SMALL
from trainer.checkpoints.layers import keep_layers
from trainer.checkpoints.load import CheckpointError


@pytest.mark.parametrize("config", [BertConfig, LlamaConfig, ModernBertConfig, Qwen3Config])
def test_kept_layers_are_the_first_the_last_and_evenly_between(config: Any) -> None:
    size = {**SMALL, "num_hidden_layers": 12, "num_key_value_heads": 4, "head_dim": 8}
    model: Any = AutoModelForSequenceClassification.from_config(config(**size))
    layers = next(list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    keep_layers(model, 6)
    kept = next(list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    assert [layers.index(layer) for layer in kept] == [0, 2, 4, 7, 9, 11]
    assert model.config.num_hidden_layers == 6
    if config is ModernBertConfig:  # every third of the whole model's layers has no window
        assert model.config.layer_types == [layer.attention_type for layer in kept]
        assert model.config.layer_types.count("full_attention") == 2
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
    with pytest.raises(CheckpointError, match="cannot keep 7 layers of a model that has 6"):
        keep_layers(model, 7)
