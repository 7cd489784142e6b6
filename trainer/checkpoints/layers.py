"""The layers of a Hugging Face model, and models with fewer of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import nn

from trainer.checkpoints.load import CheckpointError, Model

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # settings with an entry for each layer


class Layers(NamedTuple):
    """A model's layers in order; ``name`` is that of their list in the model's ``named_modules``."""

    name: str
    modules: nn.ModuleList

    def linear(self) -> dict[str, nn.Linear]:
        """The matrices of all layers by their names in the list, such as ``0.mlp.up_proj``."""
        return {name: module for name, module in self.modules.named_modules() if isinstance(module, nn.Linear)}


def find_layers(model: Model) -> Layers:
    """The layers of a model. Raises CheckpointError where they are not one list (ALBERT shares one layer)."""
    depth = model.config.num_hidden_layers
    found = [
        Layers(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(found) != 1:
        raise CheckpointError(f"the layers of a {model.config.model_type} model are not one list of {depth}")
    return found[0]


def keep_layers(model: Model, count: int) -> None:
    """Cut an encoder or decoder to ``count`` of its layers: the first, the last and evenly spaced ones between.

    Raises CheckpointError for a model whose layers are not found, or that has fewer than ``count``.
    """
    depth = model.config.num_hidden_layers
    if not 1 <= count <= depth:
        raise CheckpointError(f"cannot keep {count} layers of a model that has {depth}")
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    kept = [round(place) for place in np.linspace(0, depth - 1, count).tolist()]
    chosen: Model = nn.ModuleList([layers[index] for index in kept])
    setattr(model.get_submodule(parent), child, chosen)
    for place, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the cache of keys and values
                module.layer_idx = place
    model.config.num_hidden_layers = count
    for setting in PER_LAYER:
        if values := getattr(model.config, setting, None):
            setattr(model.config, setting, [values[index] for index in kept])
