"""The writers of checkpoints and of model versions as commands, to be killed or to meet a full disk.

tests.support.writers checkpoint FROM TO
tests.support.writers version CHECKPOINT REPOSITORY
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engines.repository.install import install
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.repositories import MANIFEST, engine_of
from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.save import save_checkpoint
from trainer.command import command


@command
def main(argv: Sequence[str] | None = None) -> None:
    kind, source, target = sys.argv[1:] if argv is None else argv
    if kind == "version":
        install(Path(target), Path(source), engine_of(Path(source)), MANIFEST)
        return
    model = load_checkpoint(source, causal=False, seed=0)
    save_checkpoint(model.model, PairEncoder.load(source), model.tokenizer, Path(target), {"of": source})
