"""LoRA: small trained matrices beside the frozen ones of an LLM, merged into them or kept in PEFT's own format.

Source: Hu et al. 2021, arXiv 2106.09685. The adapters are PEFT's.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoints.layers import find_layers
from trainer.checkpoints.load import ADAPTER_FILE, CheckpointError, Model
from trainer.data.records import DataError
from trainer.packed.forward import is_decoder

PEFT_PREFIX = "base_model.model."  # before every weight's name in PEFT's files
PEFT_NAME = "default"  # of the one adapter; its files leave the name out


@dataclass
class LoraArguments:
    """Adapters instead of full weights."""

    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all weights."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Adapters are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_merge: bool = field(
        default=True, metadata={"help": "Merge them into the result; false keeps them, for trainer.merge and PEFT."}
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise DataError(f"--lora_rank must be at least 0, not {self.lora_rank}")
        if not self.lora_merge and not self.lora_rank:
            raise DataError("--lora_merge false keeps adapters: it needs --lora_rank")


def add_adapters(model: Model, arguments: LoraArguments, base: str) -> None:
    """Freeze the model, which ``base`` holds, but for its score head; put an adapter on every matrix of its layers.

    Raises CheckpointError for a model without ``torch.nn.Linear`` in its layers.
    """
    if not arguments.lora_rank:
        return
    if not arguments.lora_merge and not is_decoder(model):
        raise CheckpointError(f"--lora_merge false is for LLMs, not for a {model.config.model_type} model")
    layers = find_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers.linear()})
    if not names:
        raise CheckpointError(f"a {model.config.model_type} model has no linear layers that LoRA could adapt")
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # it divides; any number does
        lora_dropout=arguments.lora_dropout,
        target_modules=rf"{re.escape(layers.name)}\.\d+\.(.+\.)?({'|'.join(names)})",
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).exists() else base,
    )
    inject_adapter_in_model(config, model, PEFT_NAME)
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


def has_adapters(model: Model) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def save_adapters(model: Model, directory: Path) -> None:
    """Write adapters and score head as PEFT does, so that ``PeftModel.from_pretrained`` reads them; read back, too."""
    config = copy.copy(model.peft_config[PEFT_NAME])
    scorer = hasattr(model, "score")
    config.task_type = TaskType.SEQ_CLS if scorer else TaskType.CAUSAL_LM
    config.modules_to_save = ["score"] if scorer else None
    config.inference_mode = True
    config.save_pretrained(directory)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in _kept(model).items()}
    save_file(weights, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    saved = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    for name, weight in weights.items():
        if not torch.equal(weight, saved[name]):
            raise CheckpointError(f"{directory}: {name} was not saved as it was trained")


def read_config(directory: Path) -> LoraConfig:
    """Raises CheckpointError for a directory that holds no LoRA adapter."""
    if not (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{directory}: no adapter here (it has no {ADAPTER_FILE})")
    try:
        config = LoraConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{directory}: {ADAPTER_FILE} cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{directory}: an adapter of type {config.peft_type}, not LoRA")
    return config


def load_adapters(model: Model, directory: Path, config: LoraConfig) -> None:
    """Put saved adapters beside the matrices of ``model``, and the saved head in the place of its own.

    Raises CheckpointError where they do not fit.
    """
    config.modules_to_save = None
    try:
        inject_adapter_in_model(config, model, PEFT_NAME)
        saved = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the adapter cannot be loaded: {error}") from error
    kept = _kept(model)
    unlike = [name for name in sorted(kept.keys() | saved.keys()) if _shape(kept, name) != _shape(saved, name)]
    if unlike:
        raise CheckpointError(f"{directory}: the adapter does not fit the model: {unlike[0]}")
    for name, weight in kept.items():
        weight.data.copy_(saved[name])


def _kept(model: Model) -> dict[str, Tensor]:
    """What training with adapters changes, by PEFT's names."""
    return {
        PEFT_PREFIX + name.replace(f".{PEFT_NAME}.", "."): weight
        for name, weight in model.state_dict().items()
        if ".lora_" in name or name.startswith("score.")
    }


def _shape(weights: dict[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None
