"""LoRA: small trained matrices beside the frozen ones of an LLM, merged into them or kept in PEFT's own format.

In training the adapters are PEFT's, injected into the Hugging Face model. A ``PeftModel`` around it would not do:
for one, transformers 5.23 replaces FSDP's choice of layers to gather by a policy that Accelerate 1.15 does not know
for FSDP 2, and the whole model is gathered at once.
Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.frozen import check_four_bit
from trainer.checkpoints.layers import find_layers
from trainer.checkpoints.load import ADAPTER_FILE, CheckpointError, Model, first_line, load_causal_lm, load_for_training
from trainer.data.records import DataError
from trainer.packed.body import is_decoder
from trainer.packed.check import QUERY, SHORT
from trainer.packed.forward import packed_readings

PEFT_PREFIX = "base_model.model."  # before every weight's name in PEFT's files
PEFT_NAME = "default"  # of the one adapter; PEFT's files leave it out


@dataclass
class LoraArguments:
    """Adapters instead of full weights."""

    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all weights."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Adapters are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_merge: bool = field(
        default=True, metadata={"help": "Merge them into the result; false keeps them, for trainer.merge and PEFT."}
    )
    frozen_precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto",
        metadata={"help": "Precision of the matrices that LoRA freezes; auto is bf16 with --bf16 true, else fp32."},
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the matrices that LoRA freezes in 4 bits (NF4), on an NVIDIA GPU."}
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise DataError(f"--lora_rank must be at least 0, not {self.lora_rank}")
        if not self.lora_merge and not self.lora_rank:
            raise DataError("--lora_merge false keeps adapters: it needs --lora_rank")
        if self.frozen_precision != "auto" and not self.lora_rank:
            raise DataError("--frozen_precision is that of matrices which LoRA freezes: it needs --lora_rank")
        if self.load_in_4bit:
            check_four_bit(self.lora_rank, self.frozen_precision)


def add_adapters(model: Model, arguments: LoraArguments, base: str) -> None:
    """Put an adapter on every matrix of the model's layers, and freeze all else but the score head.

    ``base`` is the checkpoint of the model, which kept adapters name. Raises CheckpointError for a model without
    ``torch.nn.Linear`` in its layers.
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
    if model.get_output_embeddings() is None:
        body = {id(weight) for weight in model.base_model.parameters()}
        for weight in model.parameters():
            if id(weight) not in body:
                weight.requires_grad_(True)


def merge_adapters(model: Model) -> None:
    """Add every adapter to the matrix that it stands beside; the model is then one like any other."""
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())


def has_adapters(model: Model) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def save_adapters(model: Model, directory: Path) -> dict[str, Tensor]:
    """Write adapters and score head as ``PeftModel.save_pretrained`` does, and return them by their names there."""
    config = copy.copy(model.peft_config[PEFT_NAME])
    scorer = hasattr(model, "score")
    config.task_type = TaskType.SEQ_CLS if scorer else TaskType.CAUSAL_LM
    config.modules_to_save = ["score"] if scorer else None
    config.inference_mode = True
    config.save_pretrained(directory)
    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    if scorer:
        trained["score.weight"] = model.score.weight
    weights = {PEFT_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
    save_file(weights, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return weights


def read_adapters(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / SAFETENSORS_WEIGHTS_NAME)


def load_adapted(directory: Path, base: str | None = None) -> PeftModel:
    """The model that saved adapters were trained beside, or the one at ``base``, with the adapters.

    Raises CheckpointError where there are none, or they do not fit.
    """
    if not (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{directory}: no adapter here (it has no {ADAPTER_FILE})")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        saved = read_adapters(directory)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the adapter cannot be read: {first_line(error)}") from error
    load = load_for_training if config.task_type == TaskType.SEQ_CLS else load_causal_lm
    model: Model = load(base or str(config.base_model_name_or_path))
    try:
        with warnings.catch_warnings(action="ignore"):  # of weights that the file lacks: these are an error below
            adapted = PeftModel.from_pretrained(model, str(directory))
    except (ValueError, RuntimeError, KeyError) as error:  # KeyError: a head that the file lacks
        raise CheckpointError(f"{directory}: the adapter does not fit the model: {first_line(error)}") from error
    unlike = saved.keys() ^ get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if unlike:
        raise CheckpointError(f"{directory}: the adapter does not fit the model: {min(unlike)}")
    return adapted.eval()


def control_readings(model: Model, encoder: PairEncoder) -> list[float]:
    """A number for each of three pairs, by which one model is told from another: a scorer's logit, or the largest
    next-token logit of a causal LM."""
    was_training = model.training
    with torch.inference_mode():
        readings_NX = packed_readings(model.eval(), encoder.pack(encoder.encode(QUERY, SHORT)))
    model.train(was_training)
    readings: list[float] = readings_NX.reshape(len(readings_NX), -1).amax(1).tolist()
    return readings
