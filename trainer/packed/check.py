"""Whether a model scores packed pairs as it scores each of them alone: checked for every checkpoint that is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from model_repository.tokenizer.pair_encoding import Document, FlatPairs, PackedBatch, Pair, PairEncoder
from trainer.packed.attention import MASKED
from trainer.packed.body import is_decoder, takes_token_types
from trainer.packed.families import reach_of_layers, why_unpackable
from trainer.packed.forward import packed_readings
from trainer.packed.heads import UnknownHeadError, has_late_interaction, last_layer_of_head, sharpness_of

TOLERANCE = 1e-4  # of a logit; measured differences are below 1e-6, and those of a wrong mask above 1e-3
QUERY = "a query to check"
SHORT = (
    Document(title="a short title", summary="and a summary that is somewhat longer than the title, of a document"),
    Document(title="", summary="second"),
    Document(title="a third", summary=""),
)


class UnpackableError(ValueError):
    """A model, with its pair encoding, that packing would score wrongly or not at all."""


@torch.inference_mode()
def require_packing(model: Any, encoder: PairEncoder) -> None:
    """Score pairs in shared rows and each alone, one of them of full length; raise UnpackableError if they differ.

    Compared are a scorer's logits, or the logits of a causal LM for the next token. Families whose positions or
    masks do not follow what the packer says fail here, by name.
    """
    long = Document(title="", summary=("long " * encoder.config.max_pair_tokens)[: encoder.config.max_document_bytes])
    pairs = encoder.encode(QUERY, [long, *SHORT])
    batch = encoder.pack(pairs)
    if reason := why_unpackable(model, encoder.config, int(pairs.token_ids.max()), int(pairs.token_ids[-1])):
        raise UnpackableError(reason)
    together, alone = _scored_both_ways(model, batch, pairs)
    difference = float((together - alone).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(alone.abs().max())):
        raise UnpackableError(
            f"packed scores of a {model.config.model_type} model differ from scores alone by {difference:.2g}; "
            "this family cannot be packed"
        )


def _scored_both_ways(model: Any, batch: PackedBatch, pairs: FlatPairs) -> tuple[Tensor, Tensor]:
    """The readings of all pairs, packed and alone. Raises UnpackableError for whatever the model's code raises."""
    was_training = model.training
    model.eval()
    try:
        return packed_readings(model, batch), torch.stack([_alone(model, pair) for pair in pairs])
    except torch.OutOfMemoryError:
        raise
    except UnknownHeadError as error:
        raise UnpackableError(str(error)) from error
    except Exception as error:  # the family's own code, given rows that it was not written for
        family, kind, reason = model.config.model_type, type(error).__name__, str(error).strip().partition("\n")[0]
        raise UnpackableError(f"a {family} model cannot be packed: {kind}: {reason}") from error
    finally:
        model.train(was_training)


def _alone(model: Any, pair: Pair) -> Tensor:
    """A pair's logit, or an LM's logits of the next token, by the class's own defaults for masks and positions.

    By late interaction the query is read alone, and the document with a mask that lets it see the start token.
    """
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
    if has_late_interaction(model):
        places = torch.arange(len(pair.token_ids), device=model.device)
        of_document, away_LL = places >= pair.document_start, (places[:, None] - places).abs()
        apart_LL = (of_document[:, None] != of_document) & (places != 0)
        masks = {
            kind: torch.where(apart_LL | (away_LL >= (reach or len(places))), MASKED, 0.0)[None, None]
            for kind, reach in reach_of_layers(model.config).items()
        }
        mask = masks if len(masks) > 1 else next(iter(masks.values()))  # as body_states hands them over
        query = {name: values[:, : pair.document_start] for name, values in inputs.items()}
        query_QH = normalize(model.base_model(**query).last_hidden_state[0], dim=-1)
        states_LH = model.base_model(**inputs, attention_mask=mask).last_hidden_state[0]
        document_DH = normalize(states_LH[pair.document_start :], dim=-1)
        sharpness = sharpness_of(model)
        sharp_QD = sharpness * query_QH @ document_DH.T
        product_H = (query_QH * (sharp_QD.softmax(1) @ document_DH)).mean(0)
        rest = sharp_QD.logsumexp(1).mean() / sharpness - product_H.sum()
        return last_layer_of_head(model)(product_H + rest / len(product_H)).squeeze()  # type: ignore[no-any-return]
    logits: Tensor = type(model).forward(model, **inputs).logits
    return logits.squeeze()
