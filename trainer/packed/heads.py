"""Heads on one state for each pair: of sequence-classification classes a score, of LMs the next token.

Hugging Face's classes compute their head inside a forward that pools by itself. In packed rows the packer says which
token stands for a pair, or which tokens are of the query and which of the document.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Head = Callable[[Any, Tensor], Tensor]  # a model and the states [N, H] of the pairs' tokens -> logits [N, 1]


class UnknownHeadError(ValueError):
    """The head of this family is not known, or how it pools."""


AFTER_POOLER = (
    "bert", "ernie", "gte", "luke", "megatron-bert", "nomic_bert", "rembert", "roc_bert", "squeezebert", "tapas",
)  # fmt: skip
OF_FIRST_TOKEN = (
    "big_bird", "camembert", "data2vec-text", "electra", "esmc", "ibert", "jina_embeddings_v3", "mpnet", "mra",
    "nystromformer", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
)  # fmt: skip
# By the model_type of an encoder's configuration. All decoders have the same head. Some poolers and classifiers take
# the first token of [N, tokens, H] by themselves.
ENCODER_HEADS: dict[str, Head] = {
    **dict.fromkeys(
        AFTER_POOLER, lambda model, x: model.classifier(model.dropout(model.base_model.pooler(x[:, None])))
    ),
    **dict.fromkeys(OF_FIRST_TOKEN, lambda model, x: model.classifier(x[:, None])),
    "albert": lambda model, x: model.classifier(
        model.dropout(model.base_model.pooler_activation(model.base_model.pooler(x)))
    ),
    "distilbert": lambda model, x: model.classifier(model.dropout(F.relu(model.pre_classifier(x)))),
    "eurobert": lambda model, x: model.classifier(model.activation(model.dense(x))),
    "modernbert": lambda model, x: model.classifier(model.drop(model.head(x))),
}
POOLING = {"eurobert": "bos", "modernbert": "cls"}  # the setting by which only the first token is read
ALL_TOKENS = "mean"  # the one by which the mean of all states is read
LATE = "late_interaction"  # the "pair_pooling" of a head that compares the tokens of query and document
SHARPNESS = 20.0  # of a new one's soft maximum: that of two equal cosines is 0.035 above them
SCALE = 5.0  # of a new one, which takes a soft maximum from 0 to 1 to -2.5 to 2.5: a teacher's are standardised


def choose_pooling(model: Any) -> None:
    """Let a new head read the first token alone, in families that leave the choice to the configuration."""
    if pooling := POOLING.get(model.config.model_type):
        model.config.classifier_pooling = model.classifier_pooling = pooling  # EuroBERT's class keeps a copy


def give_late_interaction(model: Any) -> None:
    """Give an encoder a new head, which compares the query's tokens with the document's.

    In the layers the two see nothing of each other, but that the document sees the start token, which has read the
    query. The head begins as the mean, over the query's tokens, of the soft maximum of the cosines with the document's
    tokens. Source: ColBERT, arXiv 2004.12832, which takes the sum of the maxima.

    Raises UnknownHeadError where the family's head is not known, and for SqueezeBERT, which calls its pooler in any
    case.
    """
    if (family := model.config.model_type) not in ENCODER_HEADS or family == "squeezebert":
        raise UnknownHeadError(f"late interaction in a {family} model is not supported")
    model.config.pair_pooling = LATE
    model.config.pair_sharpness = getattr(model.config, "pair_sharpness", SHARPNESS)
    keep_last_layer_of_head(model)
    layer = last_layer_of_head(model)
    with torch.no_grad():
        layer.weight.fill_(SCALE)
        layer.bias.fill_(-SCALE / 2)


def keep_last_layer_of_head(model: Any) -> None:
    """Leave out what such a head does not read, so that other libraries, which would read it, miss its weights."""
    if hasattr(model.base_model, "pooler"):
        model.base_model.pooler = None
    for owner, part in ((model, "head"), (model, "dense"), (model, "pre_classifier"), (model.classifier, "dense")):
        if hasattr(owner, part):
            setattr(owner, part, nn.Identity())


def last_layer_of_head(model: Any) -> nn.Linear:
    """The last layer of the family's own head, which is all that decoders and late interaction have of it."""
    layer = model.score if hasattr(model, "score") else model.classifier
    return getattr(layer, "out_proj", layer)  # type: ignore[no-any-return]


def score_head(model: Any, pooled_NH: Tensor) -> Tensor:
    """Float32 logits [N] from the states [N, H] that stand for N pairs.

    The head computes in the precision of its weights, outside of autocast: logits of bfloat16 tie. Raises
    UnknownHeadError for an encoder that is not in ENCODER_HEADS, or that pools in another way.
    """
    head: Head
    check_pooling(model)
    if hasattr(model, "score") or has_late_interaction(model):
        head, layer = (lambda model, x: last_layer_of_head(model)(x)), last_layer_of_head(model)
    elif (family := model.config.model_type) in ENCODER_HEADS:
        if family in POOLING and (pooling := model.config.classifier_pooling) not in (POOLING[family], ALL_TOKENS):
            raise UnknownHeadError(f'the "classifier_pooling" {pooling!r} of this {family} model is not supported')
        head, layer = ENCODER_HEADS[family], model.classifier
    else:
        raise UnknownHeadError(f"the score head of a {family} model is not supported")
    states_NH = pooled_NH.to(next(weight.dtype for weight in layer.parameters()))
    with without_autocast(states_NH):
        scores_N: Tensor = head(model, states_NH)[:, 0].float()
    return scores_N


def check_pooling(model: Any) -> None:
    """Raises UnknownHeadError for a ``pair_pooling`` that is not known."""
    if (pooling := getattr(model.config, "pair_pooling", None)) not in (None, LATE):
        raise UnknownHeadError(f'the "pair_pooling" {pooling!r} is not known; it is {LATE!r}, or not there')


def sharpness_of(model: Any) -> float:
    """How sharp the soft maximum of late interaction is. Raises UnknownHeadError where the configuration has none."""
    sharpness = getattr(model.config, "pair_sharpness", None)
    if isinstance(sharpness, int | float) and 0 < sharpness < math.inf:
        return sharpness
    raise UnknownHeadError(
        f'late interaction needs a "pair_sharpness" above 0 in config.json, not {sharpness!r}: trainer.init writes it'
    )


def has_late_interaction(model: Any) -> bool:
    """Whether the head of a scorer compares the tokens of query and document."""
    config = model.config
    return config.model_type in ENCODER_HEADS and getattr(config, "pair_pooling", None) == LATE


def pools_all_tokens(model: Any) -> bool:
    """Whether the head of a scorer reads the states of a pair's tokens, not the state of one token."""
    chosen = model.config.model_type in POOLING and model.config.classifier_pooling == ALL_TOKENS
    return chosen or has_late_interaction(model)


def next_token_logits(model: Any, states: Tensor) -> Tensor:
    """Float32 logits [..., vocabulary] from a causal LM's states [..., H], as the family's own class makes them."""
    logits: Tensor = model.get_output_embeddings()(states).float() / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)  # of Gemma 2 and 3; the scale is Granite's
    return logits if cap is None else cap * torch.tanh(logits / cap)


def without_autocast(values: Tensor) -> AbstractContextManager[None]:
    """A block whose products keep the precision of their factors."""
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
