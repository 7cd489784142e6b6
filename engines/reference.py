"""The reference of the gate, in PyTorch. ``engines.versions``, which compares engines, starts without it."""

from __future__ import annotations

from transformers import PreTrainedModel

from engines.records import Runner
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PairEncoder
from trainer.checkpoints.load import PackedScorer


def torch_runner(model: PreTrainedModel, encoder: PairEncoder) -> Runner:
    """The checkpoint in PyTorch."""
    scorer = PackedScorer(model.eval())

    def run(pairs: FlatPairs) -> FloatArray:
        return scorer.score(encoder.pack(pairs))

    return run
