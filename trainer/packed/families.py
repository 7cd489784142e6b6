"""The demands of a model family on packing, read from its configuration as transformers 5 reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncodingConfig
from trainer.packed.body import is_decoder

UNPACKABLE = {"bloom", "deberta", "deberta-v2"}
NO_MASK = "its attention takes no mask that keeps the pairs of a row apart"
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them
# Families with windows. One mask goes into every layer, whatever layer_types says; or each kind of layer has its own.
ONE_MASK = {"ministral3", "mistral", "mixtral", "phi3", "starcoder2"}
MASK_OF_KIND = {"exaone4", "gemma2", "gemma3_text", "ministral", "modernbert", "olmo3", "qwen2", "qwen3", "smollm3"}


class Window(NamedTuple):
    """How far attention reaches in some or all layers: pairs of up to ``tokens`` see no end of it."""

    tokens: int
    setting: str


def why_unpackable(model: Any, encoding: PairEncodingConfig, highest_token: int, end_token: int) -> str | None:
    """Why the configurations of a model and its pair encoding do not fit packing, or each other; None if they do.

    ``highest_token`` is the highest id that the tokenizer gave, ``end_token`` the one that ends a pair.
    """
    family = model.config.model_type
    with_alibi = getattr(model.config, "alibi", False)  # of Falcon, which has it or rotary positions
    if with_alibi or family in UNPACKABLE:
        return f"a {family} model cannot be packed: {NO_MASK}"
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if highest_token >= vocabulary:
        return f"the tokenizer gives token {highest_token}; the model knows {vocabulary} tokens"
    offset = position_offset(model)
    if offset != encoding.position_offset:
        return (
            f"positions of this {family} model begin at {offset}, and {ENCODING_FILE} says position_offset "
            f"{encoding.position_offset}: make the checkpoint with python -m trainer.init"
        )
    limit = usable_positions(model)
    if limit is not None and encoding.max_pair_tokens > limit:
        return f"max_pair_tokens {encoding.max_pair_tokens} is above the model's {limit} positions"
    window = narrowest_window(model.config)
    if window is not None and SLIDING not in reach_of_layers(model.config) and encoding.max_pair_tokens > window.tokens:
        return (
            f"max_pair_tokens {encoding.max_pair_tokens} is above the {window.tokens} tokens that the sliding "
            f"window of this {family} model sees ({window.setting}): packed, longer pairs would score differently"
        )
    if is_decoder(model) and model.config.pad_token_id == end_token:
        return (
            f"pad_token_id and the end of a pair are both token {end_token}, so other loaders would score the "
            "token before it: make the checkpoint with python -m trainer.init"
        )
    return None


def position_offset(model: Any) -> int:
    """The first position id of a text. RoBERTa and its kin (XLM-R, MPNet) begin after that of their padding."""
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = None if isinstance(embeddings, nn.Embedding) else getattr(embeddings, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def usable_positions(model: Any) -> int | None:
    """The number of tokens that the model has positions for, or None where its configuration does not tell."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit) - position_offset(model)


def reach_of_layers(config: Any) -> dict[str, int | None]:
    """How many tokens away, itself included, a token of each kind of layer sees; None where it sees its whole pair.

    Where it is not known how a family takes masks of several kinds, all layers count as seeing whole pairs, which is
    right for pairs that no window cuts.
    """
    family, window = config.model_type, narrowest_window(config)
    if window is None or family not in ONE_MASK | MASK_OF_KIND:
        return {FULL: None}
    kinds = [SLIDING] if family in ONE_MASK else config.layer_types
    return {kind: window.tokens if kind == SLIDING else None for kind in kinds}


def narrowest_window(config: Any) -> Window | None:
    """The narrowest attention of a model's layers, if any of them does not see a whole text."""
    kinds = getattr(config, "layer_types", None) or []
    if "chunked_attention" in kinds:
        return Window(config.attention_chunk_size, "attention_chunk_size")
    sliding = not kinds or SLIDING in kinds or config.model_type in ONE_MASK
    if not sliding or not getattr(config, "use_sliding_window", True):
        return None
    if config.model_type == "modernbert":  # local_attention / 2 tokens to either side
        return Window(config.sliding_window + 1, "local_attention")
    size = getattr(config, "sliding_window", None)
    return None if size is None else Window(size, "sliding_window")
