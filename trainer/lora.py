"""LoRA: small trained matrices beside the frozen ones of an LLM, and merged into them when training is done.

Source: Hu et al. 2021, arXiv 2106.09685. The adapters are PEFT's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from trainer.data import DataError
from trainer.models import CheckpointError, Model


@dataclass
class LoraArguments:
    """Adapters instead of full weights."""

    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all weights."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Adapters are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise DataError(f"--lora_rank must be at least 0, not {self.lora_rank}")


def add_adapters(model: Model, arguments: LoraArguments) -> None:
    """Freeze the model but for its score head, and put an adapter on every matrix of its layers.

    Raises CheckpointError for a model without ``torch.nn.Linear`` in its layers.
    """
    if not arguments.lora_rank:
        return
    stacks = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    names = {
        name.rpartition(".")[2]
        for stack in stacks
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not names:
        raise CheckpointError(f"a {model.config.model_type} model has no linear layers that LoRA could adapt")
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # it divides; any number does
        lora_dropout=arguments.lora_dropout,
        target_modules=sorted(names),
    )
    inject_adapter_in_model(config, model)
    for head in ("score", "classifier"):
        if hasattr(model, head):
            getattr(model, head).requires_grad_(True)


def merge_adapters(model: Model) -> None:
    """Add every adapter to the matrix that it stands beside; the model is then one like any other."""
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    if adapted:
        model.requires_grad_(True)
