"""Tiny rerankers as the hub has them, the families' own tokenizers and architectures, and one with late interaction.

Their weights are drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaTokenizer,
    Qwen2Tokenizer,
)

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncodingConfig
from tests.support.checkpoints import LETTERS, LIMITS, SMALL, TEXT, byte_level, late_interaction_of, tiny_bert

PROMPTS = ["instruction", "query", "document", "Query", "Document", "Instruct", "passage", "yes", "no", "Yes", "No"]
ENDS = ["", ".", "?", "!", ":", "\n", ".\n", "?\n", ":\n", "\n\n"]  # one token of Qwen's may end a line and more
WORDS = [f"{before}{word}" for word in [*PROMPTS, *TEXT.split()] for before in ("", " ", "<")]
CORPUS = [*(word + end for word in WORDS for end in ENDS), *LETTERS, "A: ", "B: "]


def tiny_reranker(directory: Path, family: str, tokenizer: Any, **settings: Any) -> Path:
    """A causal LM of the family, and the tokenizer."""
    torch.manual_seed(0)
    shape = {name: value for name, value in SMALL.items() if name != "num_labels"}
    size = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(family, **{**shape, "num_key_value_heads": 2, "head_dim": 8, **size, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_late(directory: Path, **encoding: Any) -> Path:
    """``tiny_bert`` with late interaction."""
    return late_interaction_of(tiny_bert, directory, **encoding)


def tiny_gte(directory: Path, *, layers: int = 2) -> Path:
    """As gte-reranker-modernbert-base: a ModernBERT whose head reads the mean of all tokens."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = byte_level(special, **{f"{name[1:-1].lower()}_token": name for name in special})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in special]
    pair = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ids)
    tokenizer.backend_tokenizer.post_processor = pair
    torch.manual_seed(0)
    named = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    shape = {**SMALL, **named, "num_hidden_layers": layers, "local_attention": 1024, "classifier_pooling": "mean"}
    config = AutoConfig.for_model("modernbert", **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings: dict[str, Any] = {"style": "encoder", "start_token": "[CLS]", "end_token": "[SEP]", **LIMITS}
    PairEncodingConfig(**settings).save(directory / ENCODING_FILE)
    return directory


def qwen_tokenizer() -> Any:
    """With Qwen's rules of what a word is, and control tokens of which ``<think>`` is not special."""
    pieces, merges = _trained(Qwen2Tokenizer(), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges, eos_token="<|im_end|>"
    )
    for token in ("<|im_start|>", "<think>", "</think>"):
        tokenizer.add_tokens(AddedToken(token, special=token == "<|im_start|>", normalized=False))
    return tokenizer


def gemma_tokenizer() -> Any:
    """SentencePiece's BPE, which knows bytes for letters that it lacks."""
    pieces, merges = _trained(GemmaTokenizer(), special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = GemmaTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges)
    tokenizer.add_tokens([AddedToken("\n", special=False, normalized=False)])  # as newer ones have line ends
    return tokenizer


def _trained(tokenizer: Any, **settings: Any) -> tuple[list[str], Any]:
    """The pieces and merges of a BPE with the rules of the tokenizer."""
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, **settings)
    tokenizer.backend_tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]
