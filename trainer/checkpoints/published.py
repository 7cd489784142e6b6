"""A published reranker that is an LLM as a scorer: its yes and no become a score head, its prompt the pair encoding."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding.config import DOCUMENT, QUERY
from trainer.checkpoints.load import CheckpointError, Model, load_causal_lm, load_for_training
from trainer.checkpoints.rerankers import FAMILIES, INSTRUCTION, SPELT_AS_CONTROL, Reranker

PLAIN = "none"  # of --reranker
TOLERANCE = 1e-4  # of a logit


@dataclass
class RerankerArguments:
    """A published reranker that is an LLM: what its name does not tell."""

    reranker: str | None = field(
        default=None, metadata={"help": f"The family, one of {', '.join(FAMILIES)}; {PLAIN} takes it as a plain model."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Replaces the family's own."})
    prompt: list[str] = field(
        default_factory=list,
        metadata={"help": "Parts of an unknown family's prompt: one has {query}, a later one ends with {document}."},
    )
    yes_token: str | None = field(default=None, metadata={"help": "The token whose logit is the score."})
    no_token: str | None = field(default=None, metadata={"help": "The token whose logit is subtracted, if any."})

    @property
    def given(self) -> list[str]:
        """The flags that say something of a reranker."""
        return [f"--{name}" for name, value in vars(self).items() if value and value != PLAIN]


def load_llm(name: str, arguments: RerankerArguments, config: Any, tokenizer: Any) -> tuple[Model, Reranker | None]:
    """A causal LM and None; or a reranker as a scorer with one logit, and how it is asked.

    Raises CheckpointError where flags, name, model and tokenizer do not go together.
    """
    reranker = _reranker_of(arguments, name, config)
    if has_head(config):
        reranker = _with_head(arguments, reranker, name)
    if reranker is None:
        return load_causal_lm(name), None
    reranker = _filled(reranker, tokenizer, name)
    if has_head(config):
        return load_for_training(name, allow_new_head=False), reranker
    yes, no = (text if text is None else _one_token(text, tokenizer, name) for text in (reranker.yes, reranker.no))
    if yes is None or yes == no:
        raise CheckpointError(
            f"{name}: --prompt needs --yes_token, whose logit is the score, and another --no_token or none"
        )
    return _scorer_of(load_causal_lm(name), yes, no, name), reranker


def check_head(name: str, config: Any, causal: bool, arguments: RerankerArguments) -> None:
    """Raises CheckpointError for a head of several numbers, and for an encoder called a reranker that has none."""
    if has_head(config) and config.num_labels != 1:
        raise CheckpointError(f"{name}: its head gives {config.num_labels} numbers for a pair, and a score is one")
    if "rerank" in _called(name) and not causal and not has_head(config) and arguments.reranker != PLAIN:
        raise CheckpointError(
            f"{name}: called a reranker, and its configuration names no trained head; --reranker {PLAIN} draws one"
        )


def has_head(config: Any) -> bool:
    """Whether a configuration says that its model has a trained score head."""
    return any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())


def refuse_flags(arguments: RerankerArguments, why: str) -> None:
    if arguments.given:
        raise CheckpointError(f"{arguments.given[0]} is for a reranker that is an LLM: {why}")


def _reranker_of(arguments: RerankerArguments, name: str, config: Any) -> Reranker | None:
    """The reranker that the flags describe, or else the name of the checkpoint; None for a plain LLM."""
    if arguments.prompt or arguments.yes_token or arguments.no_token:
        if arguments.reranker:
            raise CheckpointError("--reranker names a known family, with its prompt and tokens: give no others")
        if not arguments.prompt:
            raise CheckpointError(f"{arguments.given[0]} needs --prompt, which asks for that token")
        return Reranker(tuple(arguments.prompt), arguments.yes_token, arguments.no_token, arguments.instruction or "")
    if arguments.reranker not in (None, PLAIN, *FAMILIES):
        raise CheckpointError(f"--reranker {arguments.reranker}: no known family; {_what_is_known()}")
    family = FAMILIES.get(arguments.reranker or _family_of(name, config))
    if arguments.instruction is None:
        return family
    if family is None:
        raise CheckpointError("--instruction is for rerankers, and this is a plain LLM")
    return replace(family, instruction=arguments.instruction)


def _family_of(name: str, config: Any) -> str:
    for family, reranker in FAMILIES.items():
        if re.search(reranker.named, _called(name)) and config.model_type == reranker.model_type:
            return family
    if "rerank" in _called(name):
        raise CheckpointError(f"{name}: called a reranker, and its family is not known; {_what_is_known()}")
    return PLAIN


def _called(name: str) -> str:
    """The last part of a path or hub id in lower case; in the hub's cache that of the model's folder."""
    path = Path(name)
    return (path.parents[1] if path.parent.name == "snapshots" else path).name.lower()


def _what_is_known() -> str:
    return (
        f"known are {', '.join(FAMILIES)}; describe another one by --prompt and --yes_token, or take the LLM as it is "
        f"by --reranker {PLAIN}"
    )


def _with_head(arguments: RerankerArguments, reranker: Reranker | None, name: str) -> Reranker:
    """The reranker of an LLM that has a score head already, and needs the prompt only."""
    if reranker is None:
        raise CheckpointError(f"{name}: an LLM with a score head; say by --reranker or --prompt how it is asked")
    if arguments.yes_token or arguments.no_token:
        raise CheckpointError(f"{name}: has a score head already, which --yes_token would not change: leave it out")
    return replace(reranker, yes=None, no=None)


def _filled(reranker: Reranker, tokenizer: Any, name: str) -> Reranker:
    """The reranker with the instruction in its prompt."""
    prompt = reranker.prompt
    if reranker.instruction and not any(INSTRUCTION in part for part in prompt):
        raise CheckpointError(f"--instruction: the prompt has no {INSTRUCTION}: {[*prompt]}")
    if not reranker.instruction:
        lines = [line for part in prompt for line in part.splitlines() if INSTRUCTION in line]
        if holding := [line for line in lines if QUERY in line or DOCUMENT in line]:
            raise CheckpointError(f"the prompt's line {holding[0]!r} needs --instruction")
        prompt = tuple(re.sub(rf"[^\n]*{re.escape(INSTRUCTION)}[^\n]*\n?", "", part) for part in prompt)
    parts = tuple(part.replace(INSTRUCTION, reranker.instruction) for part in prompt if part)
    lacking = {*SPELT_AS_CONTROL.findall("".join(parts))} - {*tokenizer.get_added_vocab()}
    if lacking:
        raise CheckpointError(f"{name}: its tokenizer has no token {min(lacking)!r}, which the prompt holds")
    return replace(reranker, prompt=parts)


def _scorer_of(model: Model, yes: int, no: int | None, name: str) -> Model:
    """A causal LM as a scorer, which shares its weights. Its head is the difference of the rows of yes and no."""
    rows = model.get_output_embeddings().weight.detach()
    model.config.num_labels = 1
    with torch.device("meta"):
        scorer: Model = AutoModelForSequenceClassification.from_config(model.config)
    setattr(scorer, scorer.base_model_prefix, model.base_model)
    scorer.score = nn.Linear(rows.shape[1], 1, bias=False)
    scorer.score.weight.data = rows[yes, None] - (0 if no is None else rows[no, None])
    _compare(model, scorer, yes, no, name)
    return scorer.eval()


@torch.inference_mode()
def _compare(model: Model, scorer: Model, yes: int, no: int | None, name: str) -> None:
    tokens = torch.arange(8)[None]
    logits_V: Tensor = model(tokens, use_cache=False).logits[0, -1]
    published = logits_V[yes] - (0 if no is None else logits_V[no])
    score = scorer.score(scorer.base_model(tokens, use_cache=False).last_hidden_state[0, -1])
    if not float((score - published).abs()) <= TOLERANCE * max(1.0, float(published.abs())):
        raise CheckpointError(
            f"{name}: the logits of this {model.config.model_type} model are capped, scaled or shifted, and no score "
            "head gives their difference"
        )


def _one_token(text: str, tokenizer: Any, name: str) -> int:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        raise CheckpointError(f"{name}: {text!r} must be one token of its tokenizer, and is {len(ids)}: {tokens}")
    return ids[0]
