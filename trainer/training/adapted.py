"""The LLM that a stage trains, in full or by adapters: as it is loaded, and as it is saved.

Beside adapters, its matrices may lie in fewer bits. The result has the checkpoint's own in float32 all the same, with
the adapters merged into them or kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.checkpoints.frozen import compute_in_bf16, four_bit, round_frozen
from trainer.checkpoints.load import Checkpoint, CheckpointError, Model, load_checkpoint
from trainer.checkpoints.lora import LoraArguments, add_adapters, merge_adapters
from trainer.data.records import DataError
from trainer.packed.attention import use_kernel
from trainer.packed.body import is_decoder
from trainer.training.run import StageArguments
from trainer.training.sharded import sharding_of


@dataclass(frozen=True)
class Adapted:
    """The checkpoint that a stage starts from, and how. Raises DataError for flags that do not go together."""

    directory: str
    causal: bool
    lora: LoraArguments
    training: StageArguments

    def __post_init__(self) -> None:
        if not (self.lora.load_in_4bit or self.lora.frozen_precision == "bf16"):
            return
        flag = "--load_in_4bit true" if self.lora.load_in_4bit else "--frozen_precision bf16"
        if not self._in_bf16:
            raise DataError(f"{flag} computes in bf16: it needs --bf16 true")
        if (sharding := sharding_of(self.training)) != "none":
            raise DataError(f"{flag} is for a whole model on each device, and {sharding} shards it")

    @property
    def _in_bf16(self) -> bool:
        return str(self.training.mixed_precision) == "bf16"

    @property
    def _rounds(self) -> bool:
        chosen = self.lora.lora_rank > 0 and self.lora.frozen_precision != "fp32"
        return chosen and self._in_bf16 and sharding_of(self.training) == "none"

    def load(self) -> Checkpoint:
        """Raises CheckpointError as ``load_checkpoint`` and ``add_adapters`` do, KernelError as ``use_kernel``."""
        checkpoint = self._checkpoint(**(four_bit() if self.lora.load_in_4bit else {}))
        if self._rounds:
            round_frozen(checkpoint.model)
        use_kernel(checkpoint.model, self.training.attention, training=True)
        return checkpoint

    def result(self, model: Model) -> Model:
        """The trained model in float32, its adapters merged if so chosen.

        Where it was trained beside matrices of fewer bits, those of the checkpoint are read again. Raises
        CheckpointError where that one has changed since.
        """
        if self._rounds:
            model = self._beside_its_own_matrices(model)
        if self.lora.lora_merge:
            merge_adapters(model)
        return model

    def _checkpoint(self, **settings: object) -> Checkpoint:
        seed = self.training.seed
        checkpoint = load_checkpoint(self.directory, causal=self.causal, seed=seed, **settings)
        model = checkpoint.model
        if settings and not is_decoder(model):
            raise CheckpointError(f"--load_in_4bit is for LLMs, not for a {model.config.model_type} model")
        add_adapters(model, self.lora, self.directory)
        if settings:  # from now on: adapters would have been made in bf16, too
            compute_in_bf16(model)
        return checkpoint

    def _beside_its_own_matrices(self, trained: Model) -> Model:
        whole = self._checkpoint().model
        for name, weight in whole.named_parameters():
            other = trained.get_parameter(name)
            if weight.requires_grad:
                weight.data = other.detach().cpu()
            elif other.is_floating_point() and not torch.equal(weight.to(other.dtype), other.cpu()):
                raise CheckpointError(f"{self.directory}: its {name} has changed since the training began")
        return whole
