"""What a model family asks of packing, read from its configuration as transformers 5 reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

NO_MASK = "its attention takes no mask that keeps the pairs of a row apart"
UNPACKABLE = {"bloom", "deberta", "deberta-v2"}


class Window(NamedTuple):
    """How far attention reaches in some or all layers: pairs of up to ``tokens`` see no end of it."""

    tokens: int
    setting: str


def why_unpackable(config: Any) -> str | None:
    """Why models of this family cannot be packed, where that is known without running one."""
    with_alibi = getattr(config, "alibi", False)  # of Falcon, which has it or rotary positions
    return NO_MASK if with_alibi or config.model_type in UNPACKABLE else None


def position_offset(model: Any) -> int:
    """The first position id of a text: RoBERTa and its kin (XLM-R, MPNet) begin after their padding's."""
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = None if isinstance(embeddings, nn.Embedding) else getattr(embeddings, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def usable_positions(model: Any) -> int | None:
    """The most tokens that the model has positions for, or None where it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit) - position_offset(model)


def narrowest_window(config: Any) -> Window | None:
    """The narrowest attention of a model's layers, if any of them does not see a whole text.

    The packed mask joins all tokens of a pair, so it is right only for pairs that no window cuts.
    """
    kinds = getattr(config, "layer_types", None) or []
    if "chunked_attention" in kinds:
        return Window(config.attention_chunk_size, "attention_chunk_size")
    # Mistral's one mask has the window for every layer, whatever layer_types says.
    sliding = not kinds or "sliding_attention" in kinds or config.model_type == "mistral"
    if not sliding or not getattr(config, "use_sliding_window", True):
        return None
    if config.model_type == "modernbert":  # local_attention / 2 tokens to either side
        return Window(config.sliding_window + 1, "local_attention")
    size = getattr(config, "sliding_window", None)
    return None if size is None else Window(size, "sliding_window")
