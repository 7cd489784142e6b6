"""Checkpoints that appear whole, and only if they are read back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncoder
from trainer.checkpoints.load import CheckpointError
from trainer.checkpoints.lora import has_adapters, save_adapters
from trainer.packed.check import CONTROL
from trainer.packed.forward import is_decoder

RECORD_FILE = "training.json"


def save_checkpoint(model: Any, encoder: PairEncoder, tokenizer: Any, output_dir: Path, record: dict[str, Any]) -> None:
    """A Hugging Face directory, or PEFT's for a model with adapters, with its tokenizer, ``pair_encoding.json`` and
    ``training.json``.

    Written beside, read back and compared weight by weight, then renamed.
    """
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if not is_decoder(model):  # sentence-transformers would put a sigmoid on a single logit
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    save_adapters(model, partial) if has_adapters(model) else model.save_pretrained(partial)
    tokenizer.model_max_length = encoder.config.max_pair_tokens
    tokenizer.save_pretrained(partial)
    encoder.config.save(partial / ENCODING_FILE)
    (partial / RECORD_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    _compare_with_saved(model, encoder, partial)
    refuse_existing(output_dir)
    partial.rename(output_dir)


def refuse_existing(output_dir: Path) -> None:
    if output_dir.exists():
        raise CheckpointError(f"{output_dir}: exists already; remove it or choose another --output_dir")


def _compare_with_saved(model: Any, encoder: PairEncoder, directory: Path) -> None:
    if not has_adapters(model):  # those were compared when they were written
        saved = type(model).from_pretrained(directory, dtype=torch.float32).state_dict()
        for name, weight in model.state_dict().items():
            if name not in saved or not torch.equal(weight.cpu(), saved[name]):
                raise CheckpointError(f"{directory}: {name} was not saved as it was trained")
    before, after = (each.encode(*CONTROL) for each in (encoder, PairEncoder.load(directory)))
    if not np.array_equal(before.token_ids, after.token_ids):
        raise CheckpointError(f"{directory}: the tokenizer was not saved as it was used")
