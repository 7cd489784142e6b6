"""A tokenizer's control tokens and template, and whether they fit the model beside it."""

from __future__ import annotations

from typing import Any

from trainer.checkpoints.load import CheckpointError, Model

ADDED_PAD = "<pad>"
# What a pair needs, and what must be the same in the model's configuration. A prompt brings its own control tokens.
CONTROL_TOKENS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("cls", "sep", "pad"), ("pad", "bos", "eos", "cls", "sep")),
    "decoder": (("eos",), ("bos", "eos", "cls", "sep")),
    "prompted": ((), ()),
}


def check_tokenizer(tokenizer: Any, model: Model, kind: str, name: str) -> None:
    """Raises CheckpointError for a tokenizer that visibly belongs to another model or lacks what a pair needs.

    ``kind`` is one of CONTROL_TOKENS. Two vocabularies of one size with the same control tokens cannot be told apart.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{name}: its tokenizer has no tokenizer.json, which packing and serving need")
    needed, compared = CONTROL_TOKENS[kind]
    for token in needed:
        if getattr(tokenizer, f"{token}_token") is None:
            raise CheckpointError(f"{name}: its tokenizer has no {token}_token, which a pair needs")
    for token in compared:
        tokenizer_id = getattr(tokenizer, f"{token}_token_id", None)
        model_id = getattr(model.config, f"{token}_token_id", None)  # of eos, a list in some models
        known = model_id if isinstance(model_id, list) else [model_id]
        if tokenizer_id is not None and model_id is not None and tokenizer_id not in known:
            raise CheckpointError(
                f"{name}: {token}_token_id is {model_id} in the model's configuration, and the tokenizer's "
                f"{token}_token {getattr(tokenizer, f'{token}_token')!r} is {tokenizer_id}: is it another model's "
                "tokenizer?"
            )
    rows = model.get_input_embeddings().weight.shape[0]
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = [token_id for token_id in tokenizer.get_vocab().values() if token_id not in special]
    if max(words, default=0) >= rows:
        raise CheckpointError(f"{name}: the tokenizer gives tokens up to {max(words)}; the model knows {rows} tokens")


def separators(tokenizer: Any, name: str) -> int:
    """The number of separators that an encoder's tokenizer puts between query and document: 1, or 2 for RoBERTa.

    Raises CheckpointError for any other template, since other loaders of the checkpoint write pairs by it.
    """
    left, right = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("left", "right"))
    written = tokenizer("left", "right")["input_ids"]
    start, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    for count in (1, 2):
        if written == start + left + end * count + right + end:
            return count
    start_token, end_token = tokenizer.cls_token, tokenizer.sep_token
    raise CheckpointError(
        f"{name}: its tokenizer writes a pair as {tokenizer.decode(written)!r}, and not as "
        f"'{start_token} left {end_token} right {end_token}' with one {end_token} or two in the middle"
    )


def choose_pad(tokenizer: Any, model: Model) -> str:
    """Give a decoder a padding token that neither begins nor ends a pair; return which one, and why.

    ``AutoModelForSequenceClassification`` reads the score at the last token that is no padding. If the end token
    were padding, it would read the one before. The tokenizer's own padding is kept if it fits; else a control token
    that the template does not use is taken (one for padding, a reserved one, the unknown token, or any other); else
    one is added, and the embeddings grow by a row if none is free.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken and tokenizer.pad_token_id < rows:
        choice = f"{tokenizer.pad_token} (the tokenizer's own)"
    elif free := _free_control_tokens(tokenizer, taken, rows):
        tokenizer.pad_token = free[0]
        choice = f"{free[0]} (no other use in a pair)"
    else:
        tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
        if tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
        choice = f"{ADDED_PAD} (added)"
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return choice


def _free_control_tokens(tokenizer: Any, taken: set[int | None], rows: int) -> list[str]:
    """Control tokens that may serve as padding, the best first."""
    free = [
        (token_id, token.content)
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id not in taken and token_id < rows
    ]
    fits = (
        lambda token: "pad" in token.lower(),
        lambda token: "reserved" in token or "unused" in token,
        lambda token: token == tokenizer.unk_token,
        lambda token: True,
    )
    return [token for fit in fits for _, token in free if fit(token)]
