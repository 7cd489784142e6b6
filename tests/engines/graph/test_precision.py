"""The parts that stay in float32 when a model's types say half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.graph.precision import DTYPES, typed_model
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_modernbert, write_groups
from tests.support.rerankers import tiny_late
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups

Maker = Callable[[Path], Path]


@pytest.mark.parametrize("maker", [tiny_bert, tiny_modernbert, tiny_late, tiny_llama])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.1)])
def test_typed_model_scores_as_the_model(maker: Maker, precision: str, limit: float, tmp_path: Path) -> None:
    checkpoint = maker(tmp_path / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    group = read_groups(write_groups(tmp_path / "dev.jsonl", documents=20))[0]
    batch = encoder.pack(encode_groups(encoder, [group]))
    typed = typed_model(model, precision)
    difference = np.abs(PackedScorer(typed).score(batch) - PackedScorer(model).score(batch)).max()
    assert difference < limit
    assert (difference > 1e-5) == (precision != "fp32"), "half precision must really be computed in"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "the model itself stays"


@pytest.mark.parametrize("maker", [tiny_bert, tiny_modernbert, tiny_late, tiny_llama])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_products_are_half_and_norms_and_head_are_float32(maker: Maker, precision: str, tmp_path: Path) -> None:
    typed = typed_model(load_scorer(maker(tmp_path / "checkpoint")), precision)
    for name, module in typed.named_modules():
        for parameter in module.parameters(recurse=False):
            head = any(part in name for part in ("pooler", "classifier", "score", "head."))
            norm = "norm" in type(module).__name__.lower()
            assert parameter.dtype == (torch.float32 if head or norm else DTYPES[precision]), name
    assert all(buffer.dtype == torch.float32 for buffer in typed.buffers() if buffer.is_floating_point())


def test_norm_of_large_activations_does_not_overflow() -> None:
    """Squares of 1000 are beyond float16, whose largest number is 65504."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from engines.graph.precision import _InFloat32

    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).mul(1000).half()
    for norm in (nn.LayerNorm(8), LlamaRMSNorm(8)):
        expected = norm(hidden.float())
        result = _InFloat32(norm, cast_back=True)(hidden)
        assert result.dtype == torch.float16
        torch.testing.assert_close(result.float(), expected, atol=2e-3, rtol=1e-3)
