"""The score heads of Hugging Face's sequence-classification classes, on one token's state per pair.

The classes compute their head inside a forward that pools on its own; packed rows bring the token.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

FIRST_TOKEN = {"eurobert": "bos", "modernbert": "cls"}  # what their classifier_pooling calls it


class UnknownHeadError(ValueError):
    """A family whose head we do not know, or one that reads more than one token."""


def score_head(model: Any, pooled_NH: Tensor) -> Tensor:
    """Logits [N] from the states [N, H] of the tokens that stand for N pairs. Raises UnknownHeadError."""
    base, kind = model.base_model, model.config.model_type
    pooler = getattr(base, "pooler", None)
    if hasattr(model, "score"):  # decoders: one layer without bias
        logits = model.score(pooled_NH)
    elif hasattr(model, "pre_classifier"):  # DistilBERT
        logits = model.classifier(model.dropout(F.relu(model.pre_classifier(pooled_NH))))
    elif hasattr(getattr(model, "classifier", None), "out_proj"):  # Electra, RoBERTa, MPNet: first of [N, tokens, H]
        logits = model.classifier(pooled_NH[:, None])
    elif isinstance(pooler, nn.Linear):  # ALBERT
        logits = model.classifier(model.dropout(base.pooler_activation(pooler(pooled_NH))))
    elif pooler is not None:  # BERT, NomicBert: the pooler takes the first of [N, tokens, H]
        logits = model.classifier(model.dropout(pooler(pooled_NH[:, None])))
    elif kind in FIRST_TOKEN and model.config.classifier_pooling != FIRST_TOKEN[kind]:
        raise UnknownHeadError(
            f'this {kind} model pools over all tokens: set "classifier_pooling": "{FIRST_TOKEN[kind]}" '
            "in its config.json"
        )
    elif kind == "eurobert":
        logits = model.classifier(model.activation(model.dense(pooled_NH)))
    elif kind == "modernbert":
        logits = model.classifier(model.drop(model.head(pooled_NH)))
    else:
        raise UnknownHeadError(f"the score head of a {kind} model is not supported")
    scores_N: Tensor = logits[:, 0].float()
    return scores_N
