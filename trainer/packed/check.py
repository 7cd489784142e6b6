"""Whether a model scores packed pairs as it scores them alone: asked of every checkpoint that is loaded or made.

Shapes: N pairs, R rows, L token slots a row, S pairs at most a row, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, Document, FlatPairs, Pair, PairEncoder
from trainer.packed.families import narrowest_window, position_offset, usable_positions, why_unpackable
from trainer.packed.forward import is_decoder, next_token_logits, packed_hidden, packed_scores, takes_token_types
from trainer.packed.heads import UnknownHeadError

TOLERANCE = 1e-4

# What checkpoints are checked with, whenever one is loaded or saved.
CONTROL = (
    "a query to check",
    (
        Document(title="a short title", summary="and a summary that is somewhat longer than the title, of a document"),
        Document(title="", summary="second"),
        Document(title="a third", summary=""),
    ),
)


class UnpackableError(ValueError):
    """A model, with its pair encoding, that packing would score wrongly or not at all."""


@torch.inference_mode()
def require_packing(model: Any, encoder: PairEncoder) -> None:
    """Score pairs in shared rows and one by one, one of them of full length, by a scorer's logit or an LM's
    next-token logits; raises UnpackableError unless they agree.

    Families whose positions or masks do not follow what the packer says fail here, by name.
    """
    query, documents = CONTROL
    long = Document(title="", summary=("long " * encoder.config.max_pair_tokens)[: encoder.config.max_document_bytes])
    pairs = encoder.encode(query, [long, *documents])
    _check_configuration(model, encoder, pairs)
    was_training = model.training
    try:
        together = _packed(model.eval(), encoder, pairs)
        alone = torch.stack([_alone(model, pair) for pair in pairs])
    except torch.OutOfMemoryError:
        raise
    except UnknownHeadError as error:
        raise UnpackableError(str(error)) from error
    except Exception as error:  # whatever a family's own code makes of rows that it was not written for
        family, kind, reason = model.config.model_type, type(error).__name__, str(error).strip().partition("\n")[0]
        raise UnpackableError(f"a {family} model cannot be packed: {kind}: {reason}") from error
    finally:
        model.train(was_training)
    difference = float((together - alone).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(alone.abs().max())):
        raise UnpackableError(
            f"packed scores of a {model.config.model_type} model differ from scores alone by {difference:.2g}; "
            "this family cannot be packed"
        )


def _check_configuration(model: Any, encoder: PairEncoder, pairs: FlatPairs) -> None:
    """What the configurations say before anything is computed."""
    family, settings = model.config.model_type, encoder.config
    if reason := why_unpackable(model.config):
        raise UnpackableError(f"a {family} model cannot be packed: {reason}")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    highest = int(pairs.token_ids.max())
    if highest >= vocabulary:
        raise UnpackableError(f"the tokenizer gives token {highest}; the model knows {vocabulary} tokens")
    offset = position_offset(model)
    if offset != settings.position_offset:
        raise UnpackableError(
            f"positions of this {family} model begin at {offset}, and {ENCODING_FILE} says position_offset "
            f"{settings.position_offset}: make the checkpoint with python -m trainer.init"
        )
    limit = usable_positions(model)
    if limit is not None and settings.max_pair_tokens > limit:
        raise UnpackableError(f"max_pair_tokens {settings.max_pair_tokens} is above the model's {limit} positions")
    window = narrowest_window(model.config)
    if window is not None and settings.max_pair_tokens > window.tokens:
        raise UnpackableError(
            f"max_pair_tokens {settings.max_pair_tokens} is above the {window.tokens} tokens that the sliding "
            f"window of this {family} model sees ({window.setting}): packed, longer pairs would score differently"
        )
    end = int(pairs.token_ids[-1])
    if is_decoder(model) and model.config.pad_token_id == end:
        raise UnpackableError(
            f"pad_token_id and the end of a pair are both token {end}, so other loaders would score the "
            "token before it: make the checkpoint with python -m trainer.init"
        )


@torch.inference_mode()
def control_readings(model: Any, encoder: PairEncoder) -> list[float]:
    """What tells one model from another: a number for each control pair, of an LM its largest next-token logit."""
    was_training = model.training
    packed = _packed(model.eval(), encoder, encoder.encode(*CONTROL))
    model.train(was_training)
    readings: list[float] = packed.flatten(1).amax(1).tolist() if packed.ndim > 1 else packed.tolist()
    return readings


def _packed(model: Any, encoder: PairEncoder, pairs: FlatPairs) -> Tensor:
    """Logits [N] of a scorer, or an LM's [N, vocabulary] after each pair, with the pairs in shared rows."""
    batch = encoder.pack(pairs)
    rows = [torch.from_numpy(array).long().to(model.device) for array in batch.rows]
    if model.get_output_embeddings() is None:
        together = packed_scores(model, *rows).flatten()
    else:
        hidden_RLH, pooled_RS = packed_hidden(model, *rows[:-1]), rows[-1]
        together = next_token_logits(model, hidden_RLH.take_along_dim(pooled_RS[:, :, None], dim=1)).flatten(0, 1)
    return together[torch.from_numpy(batch.slots).long().to(model.device)]


def _alone(model: Any, pair: Pair) -> Tensor:
    """A logit, or an LM's for every next token, by the class's own defaults for masks and positions."""
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(pair.token_ids)[None].long().to(model.device)}
    if model.get_output_embeddings() is not None:
        next_tokens: Tensor = type(model).forward(model, **inputs, use_cache=False).logits[0, -1]
        return next_tokens
    if is_decoder(model):
        score: Tensor = model.score(model.base_model(**inputs, use_cache=False).last_hidden_state[0, -1])
        return score.squeeze()
    if takes_token_types(model):
        places = torch.arange(len(pair.token_ids), device=model.device)
        inputs["token_type_ids"] = (places >= pair.document_start).long()[None]
    logits: Tensor = type(model).forward(model, **inputs).logits
    return logits.squeeze()
