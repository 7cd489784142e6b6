"""Models whose weights lie in parts on several processes (FSDP2, DeepSpeed ZeRO).

A part looks like a model and is none: what is scored or saved here is the whole. All processes call a function of
this file, or none does, since each holds a part of the answer; only ``sharding_of`` may be called by one.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.generic import strtobool

from client.errors import DisRankerError
from model_repository.tokenizer.pair_encoding import INPUTS, Rows, chunks
from trainer.checkpoints.load import Model, PackedScorer
from trainer.training.processes import highest


class ShardingError(DisRankerError):
    """A way to shard a model's weights that the stages do not support."""


def sharding_of(training: TrainingArguments) -> str:
    """``none``, ``fsdp`` or ``deepspeed``, by Accelerate's configuration or the flags."""
    if training.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")):
        return "deepspeed"
    if training.fsdp or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return "fsdp"
    return "none"


def check_whole_when_loaded() -> None:
    """Called before a model is loaded. Raises ShardingError for ZeRO stage 3, which cuts weights up while they load."""
    if is_deepspeed_zero3_enabled():
        raise ShardingError(
            "DeepSpeed's zero_stage 3 leaves no whole model to check and to adapt: set zero_stage: 2, or use FSDP"
        )


def check_sharding(trainer: Trainer) -> None:
    """Called before training. Raises ShardingError for FSDP 1; keeps sums in float32 where FSDP 2 computes in bfloat16.

    Accelerate would add up gradients in bfloat16 too, and cast the model's output to it: scores would tie.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if sharding_of(trainer.args) == "fsdp":
            raise ShardingError("FSDP was asked for, but Accelerate runs it in several processes with GPUs only")
        return
    if plugin.fsdp_version != 2:
        raise ShardingError("FSDP version 1 is not supported: set fsdp_version: 2 in Accelerate's configuration")
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = _layers_to_gather(trainer.model)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def _layers_to_gather(model: Model) -> list[str]:
    """The classes whose weights are gathered together: those that the model names, as far as it has such layers.

    Classes around the input embedding (as in BERT) are left out: Accelerate shards that by itself, and a second time
    fails.
    """
    embedding = model.get_input_embeddings()
    chosen = {module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())}
    return sorted({type(module).__name__ for module in chosen if embedding not in module.modules()})


def scorer_of(trainer: Trainer) -> PackedScorer:
    """A scorer of the model as it is in the middle of training."""
    return _CalledScorer(callable_model(trainer))


def callable_model(trainer: Trainer) -> Any:
    """The model that gathers its weights, where they are sharded, when it is called in the middle of training."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return trainer.model_wrapped if sharded else trainer.model


class _CalledScorer(PackedScorer):
    """Scores by the model's call: its forward is packed (``use_packed_forward``), and its hooks gather the weights.

    All processes make as many passes, whatever rows they have, since they gather the weights of each together.
    """

    def passes(self, rows: Rows, rows_per_pass: int) -> list[Tensor]:
        parts = list(chunks(rows, rows_per_pass))
        more = highest(len(parts), self.model.device) - len(parts)
        return [self.start(part) for part in [*parts, *parts[-1:] * more]][: len(parts)]

    def forward(self, *rows: Tensor) -> Tensor:
        scores_RS: Tensor = self.model(**dict(zip(INPUTS, rows, strict=True)))
        return scores_RS


class WholeModel:
    """The trained model in one piece, in float32, whether or not the Trainer sharded it.

    Made before training, since FSDP changes the model and its class in place.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self._outline = _without_weights(trainer.model) if self._sharded else None

    def gather(self) -> Model:
        """Complete in the first process; the others get a model without weights where these are sharded."""
        if self._outline is None:
            return self._trainer.model
        weights = _whole_weights(self._trainer)
        if self._trainer.is_world_process_zero():
            self._outline.load_state_dict(weights, assign=True)
            self._outline.tie_weights()
        return self._outline


def _whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The weights in float32; complete in the first process."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_deepspeed_enabled:  # its model computes with rounded weights, the optimiser has them in full
        from deepspeed.utils import safe_get_full_fp32_param

        model: Model = trainer.model
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weights[name] = safe_get_full_fp32_param(weight).cpu()
    return {name: weight.float() for name, weight in weights.items()}


def _without_weights(model: Model) -> Model:
    """A copy whose parameters have shapes and nothing in them."""
    empty: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, empty)
