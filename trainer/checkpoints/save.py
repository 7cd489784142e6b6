"""Checkpoints that appear whole, and only if they are read back as they were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, Document, PairEncoder
from trainer.checkpoints.card import CARD_FILE, card_text
from trainer.checkpoints.load import CheckpointError
from trainer.checkpoints.lora import control_readings, has_adapters, read_adapters, save_adapters
from trainer.checkpoints.record import read_record, stages_of, versions, write_record
from trainer.packed.body import is_decoder
from trainer.storage import appears_whole, check_writable

# Many kinds of text: a saved tokenizer that treats one of them differently is not the one that was used.
QUERY = "A query, to check"
DOCUMENT = Document(title="Crème brûlée & 東京", summary="  two\tspaces: 3.50€ <s> DON'T re-use")


def save_checkpoint(
    model: Any, encoder: PairEncoder, tokenizer: Any, output_dir: Path, record: dict[str, Any], logs: Path | None = None
) -> None:
    """A Hugging Face directory, or PEFT's for a model with adapters, with its tokenizer, ``pair_encoding.json``,
    ``training.json``, its card and a copy of the folder ``logs`` if there is one.

    Read back and compared weight by weight before it appears. Raises CheckpointError where the result
    would differ from what was trained, or would replace something.
    """
    if not is_decoder(model):  # sentence-transformers would put a sigmoid on a single logit
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    tokenizer.model_max_length = encoder.config.max_pair_tokens
    with appears_whole(output_dir) as partial:
        partial.mkdir()
        if has_adapters(model):
            trained, saved = save_adapters(model, partial), read_adapters(partial)
            record = {**record, "control": control_readings(model, encoder)}
        else:
            model.save_pretrained(partial)
            trained = model.state_dict()
            saved = type(model).from_pretrained(partial, dtype=torch.float32).state_dict()
        for name, weight in trained.items():
            if name not in saved or not torch.equal(weight.cpu(), saved[name]):
                raise CheckpointError(f"{output_dir}: {name} was not saved as it was trained")
        tokenizer.save_pretrained(partial)
        encoder.config.save(partial / ENCODING_FILE)
        _compare_tokenizer(encoder, partial)
        write_record(partial, {**record, "stages": stages_of(record), "versions": versions()})
        name = record.get("training", {}).get("hub_model_id") or output_dir.name
        (partial / CARD_FILE).write_text(card_text(partial, read_record(partial), name), encoding="utf-8")
        if logs is not None and logs.exists():
            shutil.copytree(logs, partial / logs.name)
        refuse_existing(output_dir)


def refuse_existing(output_dir: Path) -> None:
    """Raises CheckpointError for an output that is there, and DisRankerError where none can be made."""
    if output_dir.exists():
        raise CheckpointError(f"{output_dir}: exists already; remove it or choose another --output_dir")
    check_writable(output_dir)


def _compare_tokenizer(encoder: PairEncoder, directory: Path) -> None:
    used, saved = (each.encode(QUERY, [DOCUMENT]) for each in (encoder, PairEncoder.load(directory)))
    if not np.array_equal(used.token_ids, saved.token_ids):
        raise CheckpointError(f"{directory}: the tokenizer was not saved as it was used")
