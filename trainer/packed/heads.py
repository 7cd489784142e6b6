"""Heads on the state of one token for each pair: of sequence-classification classes a score, of LMs the next token.

Hugging Face's classes compute their head inside a forward that pools by itself. In packed rows the packer says which
token stands for a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Head = Callable[[Any, Tensor], Tensor]  # a model and the states [N, H] of the pairs' tokens -> logits [N, 1]


class UnknownHeadError(ValueError):
    """The head of this family is not known, or it reads more than one token."""


def _decoder(model: Any, pooled_NH: Tensor) -> Tensor:
    """One layer without bias."""
    return model.score(pooled_NH)  # type: ignore[no-any-return]


def _after_pooler(model: Any, pooled_NH: Tensor) -> Tensor:
    """The pooler takes the first token of [N, tokens, H]."""
    return model.classifier(model.dropout(model.base_model.pooler(pooled_NH[:, None])))  # type: ignore[no-any-return]


def _of_first_token(model: Any, pooled_NH: Tensor) -> Tensor:
    """The classifier itself takes the first token of [N, tokens, H]."""
    return model.classifier(pooled_NH[:, None])  # type: ignore[no-any-return]


def _albert(model: Any, pooled_NH: Tensor) -> Tensor:
    body = model.base_model
    return model.classifier(model.dropout(body.pooler_activation(body.pooler(pooled_NH))))  # type: ignore[no-any-return]


def _distilbert(model: Any, pooled_NH: Tensor) -> Tensor:
    return model.classifier(model.dropout(F.relu(model.pre_classifier(pooled_NH))))  # type: ignore[no-any-return]


def _eurobert(model: Any, pooled_NH: Tensor) -> Tensor:
    _require_pooling(model, "bos")
    return model.classifier(model.activation(model.dense(pooled_NH)))  # type: ignore[no-any-return]


def _modernbert(model: Any, pooled_NH: Tensor) -> Tensor:
    _require_pooling(model, "cls")
    return model.classifier(model.drop(model.head(pooled_NH)))  # type: ignore[no-any-return]


def _require_pooling(model: Any, first_token: str) -> None:
    if model.config.classifier_pooling != first_token:
        raise UnknownHeadError(
            f'this {model.config.model_type} model pools over all tokens: set "classifier_pooling": "{first_token}" '
            "in its config.json"
        )


AFTER_POOLER = (
    "bert", "ernie", "gte", "luke", "megatron-bert", "nomic_bert", "rembert", "roc_bert", "squeezebert", "tapas",
)  # fmt: skip
OF_FIRST_TOKEN = (
    "big_bird", "camembert", "data2vec-text", "electra", "esmc", "ibert", "jina_embeddings_v3", "mpnet", "mra",
    "nystromformer", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
)  # fmt: skip
# By the model_type of an encoder's configuration. All decoders have the same head.
ENCODER_HEADS: dict[str, Head] = {
    **dict.fromkeys(AFTER_POOLER, _after_pooler),
    **dict.fromkeys(OF_FIRST_TOKEN, _of_first_token),
    "albert": _albert,
    "distilbert": _distilbert,
    "eurobert": _eurobert,
    "modernbert": _modernbert,
}


def score_head(model: Any, pooled_NH: Tensor) -> Tensor:
    """Float32 logits [N] from the states [N, H] of the tokens that stand for N pairs.

    The head computes in the precision of its weights, outside of autocast: logits of bfloat16 tie. Raises
    UnknownHeadError for an encoder that is not in ENCODER_HEADS.
    """
    head: Head
    if hasattr(model, "score"):
        head, layer = _decoder, model.score
    elif (family := model.config.model_type) in ENCODER_HEADS:
        head, layer = ENCODER_HEADS[family], model.classifier
    else:
        raise UnknownHeadError(f"the score head of a {family} model is not supported")
    states_NH = pooled_NH.to(next(weight.dtype for weight in layer.parameters()))
    with _without_autocast(states_NH):
        scores_N: Tensor = head(model, states_NH)[:, 0].float()
    return scores_N


def next_token_logits(model: Any, states: Tensor) -> Tensor:
    """Float32 logits [..., vocabulary] from a causal LM's states [..., H], as the family's own class makes them."""
    logits: Tensor = model.get_output_embeddings()(states).float() / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)  # of Gemma 2 and 3; the scale is Granite's
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _without_autocast(values: Tensor) -> AbstractContextManager[None]:
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
