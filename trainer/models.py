"""Packed forward over Hugging Face models: one row holds several pairs, one score per pair.

Shapes: R rows, L token slots a row, S pairs at most a row, N pairs, H hidden.
"""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding import Document, EncodedPair, FloatArray, PackedBatch, PairEncoder, unpack
from trainer.heads import UnknownHeadError, score_head

Model = Any  # a transformers PreTrainedModel; its class declares its own parts as Tensor | Module

# Finite, and representable in float16: infinities turn empty rows into NaN.
MASKED = -30000.0
TOLERANCE = 1e-4

# What checkpoints are checked with, whenever one is loaded or saved.
CONTROL = (
    "a query to check",
    (
        Document("a short title", "and a summary that is somewhat longer than the title, of a document"),
        Document("", "second"),
        Document("a third", ""),
    ),
)


class CheckpointError(ValueError):
    """A checkpoint that is missing, of the wrong kind, or that packing would score wrongly."""


def attention_mask(segment_ids: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """Block-diagonal additive mask [R, 1, L, L]: a token sees its own pair (if causal, up to itself)."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    if causal:
        places = torch.arange(segment_ids.shape[1], device=segment_ids.device)
        same = same & (places[None, :, None] >= places[None, None, :])
    return torch.where(same, 0.0, MASKED).to(dtype)[:, None]


def packed_scores(
    model: Model,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    pool_positions: Tensor,
) -> Tensor:
    """Float32 logits [R, S] of the pairs in the rows; slots without a pair hold a meaningless number."""
    hidden_RLH = _hidden(model, input_ids, token_type_ids, position_ids, segment_ids)
    index = pool_positions[:, :, None].expand(-1, -1, hidden_RLH.shape[-1])
    pooled_RSH = torch.gather(hidden_RLH, 1, index)
    try:
        return score_head(model, pooled_RSH.flatten(0, 1)).reshape(pool_positions.shape)
    except UnknownHeadError as error:
        raise CheckpointError(str(error)) from error


def packed_logits(
    model: Model,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    pool_positions: Tensor,
) -> Tensor:
    """Next-token logits [R, L, vocabulary] of a causal LM whose rows hold several pairs."""
    logits: Tensor = model.get_output_embeddings()(_hidden(model, input_ids, token_type_ids, position_ids, segment_ids))
    return logits


def _hidden(
    model: Model, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, segment_ids: Tensor
) -> Tensor:
    causal = is_decoder(model)
    inputs: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attention_mask(segment_ids, causal, model.dtype),
    }
    if takes_token_types(model):
        inputs["token_type_ids"] = token_type_ids
    if causal:
        inputs["use_cache"] = False
    hidden_RLH: Tensor = model.base_model(**inputs).last_hidden_state
    return hidden_RLH


class PackedScorer(nn.Module):
    """A scorer of packed rows around a sequence-classification model, for scoring and export."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        pool_positions: Tensor,
    ) -> Tensor:
        return packed_scores(self.model, input_ids, token_type_ids, position_ids, segment_ids, pool_positions)

    @torch.inference_mode()
    def score(self, batch: PackedBatch) -> FloatArray:
        """Float32 logits [N], in the order of the pairs that were packed."""
        rows = (torch.from_numpy(array).long().to(self.model.device) for array in batch[:-1])
        return unpack(self(*rows).cpu().numpy(), batch.slots)


def use_packed_forward(model: Model) -> Model:
    """Bind ``packed_scores`` (a causal LM: ``packed_logits``) as the model's own forward.

    The Trainer then trains, wraps and saves the Hugging Face model itself; a module around it would
    be saved without its configuration.
    """
    packed = packed_logits if model.get_output_embeddings() is not None else packed_scores
    model.forward = types.MethodType(packed, model)
    return model


def keep_layers(model: Model, count: int) -> None:
    """Cut an encoder or decoder to ``count`` of its layers, the first, the last and evenly spaced ones between.

    Raises CheckpointError for a model whose layers are not found, or that has fewer than two or ``count``.
    """
    depth = model.config.num_hidden_layers
    if not 1 <= count <= depth:
        raise CheckpointError(f"cannot keep {count} layers of a model that has {depth}")
    stacks = [
        (module, name)
        for module in model.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(stacks) != 1:
        raise CheckpointError(f"the layers of a {model.config.model_type} model are not one list: cannot choose some")
    (owner, name) = stacks[0]
    layers = getattr(owner, name)
    kept = [round(place) for place in np.linspace(0, depth - 1, count).tolist()]
    setattr(owner, name, nn.ModuleList([layers[index] for index in kept]))
    for place, layer in enumerate(getattr(owner, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the cache of keys and values
                module.layer_idx = place
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]


def is_decoder(model: Model) -> bool:
    """Whether a token sees only what comes before it: causal LMs, and scorers with their bias-free head."""
    return hasattr(model, "score") or hasattr(model, "lm_head")


def takes_token_types(model: Model) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1


def load_scorer(directory: str | Path, encoder: PairEncoder | None = None) -> Model:
    """The sequence-classification model of a checkpoint with one logit, checked: packed equals alone.

    Raises CheckpointError for a directory that holds no such model, for a score head that would be
    new (a causal LM, say), and for a family whose packed scores differ.
    """
    model = load_for_training(directory, allow_new_head=False)
    check_packing(model, encoder or PairEncoder.load(directory), directory)
    return model


def load_for_training(directory: str | Path, allow_new_head: bool = True) -> Model:
    """A float32 scorer; ``allow_new_head`` admits checkpoints without one (a base LLM, after CPT)."""
    model, missing, _ = _load(AutoModelForSequenceClassification, directory, "a scorer", num_labels=1)
    if missing and not allow_new_head:
        raise CheckpointError(
            f"{directory}: the checkpoint has no {missing[0]!r}: it is not a trained scorer "
            f"(a causal LM goes through trainer.rank_sft first)"
        )
    new_body = [key for key in missing if key.startswith(model.base_model_prefix) and ".pooler." not in key]
    if new_body:
        raise CheckpointError(f"{directory}: the checkpoint lacks weights of the model's body, such as {new_body[0]!r}")
    if model.config.pad_token_id is None:  # the class's own pooling needs one; ours does not
        model.config.pad_token_id = 0
    return model.eval()


def load_causal_lm(directory: str | Path) -> Model:
    """The causal LM of a checkpoint, in float32. Raises CheckpointError for any other kind."""
    model, missing, unexpected = _load(AutoModelForCausalLM, directory, "a causal LM")
    lost = [*missing, *unexpected]
    if lost:
        raise CheckpointError(f"{directory}: not a causal LM checkpoint ({lost[0]!r} does not fit)")
    return model


def _load(kind: Any, directory: str | Path, what: str, **settings: Any) -> tuple[Model, list[str], list[str]]:
    """The model, the names of weights that the checkpoint lacks, and of those that it alone has."""
    require_checkpoint(directory)
    try:
        model, report = kind.from_pretrained(str(directory), dtype=torch.float32, output_loading_info=True, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: cannot be loaded as {what}: {_first_line(error)}") from error
    return model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


@torch.inference_mode()
def check_packing(model: Model, encoder: PairEncoder, name: str | Path) -> None:
    """Score three pairs in one row and one by one; raises CheckpointError unless they agree.

    Families whose positions or masks do not follow what the packer says fail here, by name.
    """
    if any(weight.is_meta for weight in model.parameters()):  # under FSDP a new head is drawn by one process alone,
        return  # which checks it
    vocabulary = model.get_input_embeddings().weight.shape[0]
    pairs = encoder.encode(*CONTROL)
    highest = max(int(pair.token_ids.max()) for pair in pairs)
    if highest >= vocabulary:
        raise CheckpointError(f"{name}: the tokenizer gives token {highest}; the model knows {vocabulary} tokens")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and encoder.config.max_pair_tokens > limit:
        raise CheckpointError(
            f"{name}: max_pair_tokens {encoder.config.max_pair_tokens} is above the model's {limit} positions"
        )
    was_training = model.training
    scorer = PackedScorer(model.eval())
    together = scorer.score(encoder.pack(pairs))
    alone = np.array([_alone(model, pair) for pair in pairs])
    model.train(was_training)
    difference = float(np.abs(together - alone).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(alone).max())):
        raise CheckpointError(
            f"{name}: packed scores of a {model.config.model_type} model differ from scores alone by {difference:.2g}; "
            "this family cannot be packed"
        )


def _alone(model: Model, pair: EncodedPair) -> float:
    """The class's own forward on one unpadded pair, by its own defaults for masks and positions."""
    input_ids = torch.from_numpy(pair.token_ids)[None].long().to(model.device)
    if is_decoder(model):
        hidden = model.base_model(input_ids, use_cache=False).last_hidden_state
        return float(model.score(hidden[:, -1]))
    inputs = {"input_ids": input_ids}
    if takes_token_types(model):
        inputs["token_type_ids"] = (
            (torch.arange(input_ids.shape[1]) >= pair.document_start).long()[None].to(model.device)
        )
    return float(type(model).forward(model, **inputs).logits)


def require_checkpoint(directory: str | Path) -> None:
    """A path must be a checkpoint (else CheckpointError); what is no path is left to the hub."""
    path = Path(directory)
    if path.exists() and not (path / "config.json").is_file():
        raise CheckpointError(f"{directory}: not a checkpoint (it has no config.json)")
    if not path.exists() and (
        path.is_absolute() or str(directory).count(os.sep) != 1 or str(directory).startswith(".")
    ):
        raise CheckpointError(f"{directory}: no such checkpoint")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def to_device(model: Model) -> Model:
    """The model on the accelerator that PyTorch has, else where it is."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model if device is None else model.to(device)
