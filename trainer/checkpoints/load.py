"""Hugging Face models as scorers of packed rows: loaded, and checked to score packed pairs as they score them alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from client.errors import DisRankerError
from model_repository.tokenizer.pair_encoding import (
    ENCODING_FILE,
    FloatArray,
    PackedBatch,
    PairEncoder,
    Rows,
    chunks,
    unpack,
)
from trainer.packed.check import UnpackableError, require_packing
from trainer.packed.forward import packed_scores
from trainer.packed.heads import (
    UnknownHeadError,
    check_pooling,
    choose_pooling,
    give_late_interaction,
    has_late_interaction,
    keep_last_layer_of_head,
)

Model = Any  # a transformers PreTrainedModel; its class declares its own parts as Tensor | Module

ADAPTER_FILE = "adapter_config.json"  # as PEFT calls it
# For transformers' loaders, which would otherwise offer to run Python that a checkpoint brings along.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}


class CheckpointError(DisRankerError):
    """A checkpoint that is missing, of the wrong kind, or that packing would score wrongly."""


class Checkpoint(NamedTuple):
    """A checkpoint of ours in memory."""

    model: Model
    encoder: PairEncoder
    tokenizer: Any  # transformers' own, which is saved beside the model again


def load_checkpoint(directory: str, *, causal: bool, seed: int, **settings: Any) -> Checkpoint:
    """A checkpoint to train, in float32: a causal LM, or a scorer, whose head may be new.

    ``seed`` draws a new head, and what is drawn after it (adapters); ``settings`` are those of transformers' loaders.
    Raises CheckpointError for a directory that trainer.init or a stage did not make, and for a model that packing would
    score wrongly.
    """
    encoder, tokenizer = load_encoder(directory)
    set_seed(seed)
    model = load_causal_lm(directory, **settings) if causal else load_for_training(directory, **settings)
    check_packing(model, encoder, directory)
    return Checkpoint(model, encoder, tokenizer)


def load_encoder(directory: str) -> tuple[PairEncoder, Any]:
    """The pair encoder of a checkpoint of ours and its tokenizer. Raises CheckpointError where there is none."""
    require_checkpoint(directory)
    if not (Path(directory) / ENCODING_FILE).is_file():
        raise CheckpointError(f"{directory}: no {ENCODING_FILE}; make a checkpoint with python -m trainer.init first")
    encoder = PairEncoder.load(directory)
    with reading(directory, "a tokenizer"):
        return encoder, AutoTokenizer.from_pretrained(directory, **NO_CODE)


def load_scorer(directory: str | Path, encoder: PairEncoder | None = None) -> Model:
    """The trained scorer of a checkpoint, with one logit.

    Raises CheckpointError for a directory that holds no such model, for a score head that would be new (of a causal
    LM, say), and for a model that packing would score wrongly.
    """
    model = load_for_training(directory, allow_new_head=False)
    check_packing(model, encoder or PairEncoder.load(directory), directory)
    return model


def load_for_training(directory: str | Path, allow_new_head: bool = True, **settings: Any) -> Model:
    """A float32 scorer; ``allow_new_head`` admits checkpoints without one (a base LLM, after CPT)."""
    model, missing, _ = _load(AutoModelForSequenceClassification, directory, "a scorer", num_labels=1, **settings)
    try:
        check_pooling(model)
    except UnknownHeadError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    if has_late_interaction(model):
        keep_last_layer_of_head(model)
        missing = sorted({*missing} & {*model.state_dict()})
    if missing and not allow_new_head:
        raise CheckpointError(
            f"{directory}: the checkpoint has no {missing[0]!r}: it is not a trained scorer "
            f"(a causal LM goes through trainer.rank_sft first)"
        )
    new_body = [key for key in missing if key.startswith(model.base_model_prefix) and ".pooler." not in key]
    if new_body:
        raise CheckpointError(f"{directory}: the checkpoint lacks weights of the model's body, such as {new_body[0]!r}")
    if missing and has_late_interaction(model):
        give_late_interaction(model)
    elif missing:
        choose_pooling(model)
    if model.config.pad_token_id is None:  # the class's own pooling needs one; ours does not
        model.config.pad_token_id = 0
    return model.eval()


def load_causal_lm(directory: str | Path, **settings: Any) -> Model:
    """The causal LM of a checkpoint, in float32. Raises CheckpointError for any other kind."""
    model, missing, unexpected = _load(AutoModelForCausalLM, directory, "a causal LM", **settings)
    lost = [*missing, *unexpected]
    if lost:
        raise CheckpointError(f"{directory}: not a causal LM checkpoint ({lost[0]!r} does not fit)")
    return model


def _load(kind: Any, directory: str | Path, what: str, **settings: Any) -> tuple[Model, list[str], list[str]]:
    """The model, the weights that the checkpoint lacks, and those that only the checkpoint has, by name."""
    require_checkpoint(directory)
    with reading(directory, what):
        model, report = kind.from_pretrained(
            str(directory), dtype=torch.float32, output_loading_info=True, use_safetensors=True, **NO_CODE, **settings
        )
    return model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


@contextmanager
def reading(directory: str | Path, what: str) -> Iterator[None]:
    """For a library's loaders. Broken files make them raise errors of any kind, which become a CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{directory}: cannot be loaded as {what}: {first_line(error)}") from error


def check_packing(model: Model, encoder: PairEncoder, name: str | Path) -> None:
    """Raises CheckpointError unless the model scores packed pairs as it scores them alone."""
    if any(weight.is_meta for weight in model.parameters()):
        return  # under FSDP only one process loads the weights, and that one checks them
    try:
        require_packing(model, encoder)
    except UnpackableError as error:
        raise CheckpointError(f"{name}: {error}") from error


def body_of(directory: str | Path) -> str:
    """Where a checkpoint's transformer lies. Old releases of sentence-transformers gave it a folder of its own."""
    own = Path(directory, "0_Transformer")
    return str(own if own.is_dir() else directory)


def require_checkpoint(directory: str | Path) -> None:
    """Raises CheckpointError for a path that holds no checkpoint; a name that is no path is left to the hub."""
    path = Path(directory)
    if (path / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{directory}: a LoRA adapter without its model: merge them first, with "
            f"python -m trainer.merge --adapter {directory} --output_dir ..."
        )
    if path.exists() and not (path / "config.json").is_file():
        body = body_of(directory)
        inside = f"; the model of a bi-encoder lies in {body}" if body != str(directory) else ""
        raise CheckpointError(f"{directory}: not a checkpoint (it has no config.json{inside})")
    if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{directory}: its weights are pickled (*.bin), and reading them could run code: save them as safetensors"
        )
    if not path.exists() and (
        path.is_absolute() or str(directory).count(os.sep) != 1 or str(directory).startswith(".")
    ):
        raise CheckpointError(f"{directory}: no such checkpoint")


def first_line(error: Exception) -> str:
    """The first line of a library's error; about remote code it would ask for a flag that no command has."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that it brings along (remote code), and none is run here"
    return str(error).strip().partition("\n")[0]


class PackedScorer(nn.Module):
    """A scorer of packed rows around a sequence-classification model, for scoring and export."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *rows: Tensor) -> Tensor:
        """``packed_scores`` of the model."""
        return packed_scores(self.model, *rows)

    def score(self, batch: PackedBatch, rows_per_pass: int = 32) -> FloatArray:
        """Float32 logits [N], in the order of the pairs that were packed."""
        scores_RS = torch.cat(self.passes(batch.rows, rows_per_pass))
        return unpack(scores_RS.cpu().numpy(), batch.slots)

    def passes(self, rows: Rows, rows_per_pass: int) -> list[Tensor]:
        """``scores[R, S]`` of each forward pass, which a GPU may still be computing."""
        return [self.start(part) for part in chunks(rows, rows_per_pass)]

    @torch.inference_mode()
    def start(self, rows: Rows) -> Tensor:
        """``scores[R, S]`` on the model's device; a GPU computes them while the caller does other work."""
        return self(*(self._moved(torch.from_numpy(array)).long() for array in rows))  # type: ignore[no-any-return]

    def _moved(self, rows: Tensor) -> Tensor:
        device = self.model.device
        if device.type == "cuda":  # a copy from other memory would wait until the last rows are scored
            return rows.pin_memory().to(device, non_blocking=True)
        return rows.to(device)


def to_device(model: Model) -> Model:
    """The model on the accelerator that PyTorch has, else where it is."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model if device is None else model.to(device)
