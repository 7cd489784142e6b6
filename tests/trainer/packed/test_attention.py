"""Masks and kernels of attention. All kernels score as the dense one does, or are refused by one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoConfig, AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding import FlatPairs, Layout, PackedBatch
from tests.support.checkpoints import SMALL
from tests.support.stages import fails, run
from trainer import rank_sft, score
from trainer.checkpoints.load import PackedScorer
from trainer.data.rankings import read_scores
from trainer.packed import attention
from trainer.packed.attention import MASKED, KernelError, Visible, dense_attention, kept, use_kernel
from trainer.packed.body import is_decoder, reads_pooled_tokens
from trainer.packed.heads import give_late_interaction

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # its compiler
]
LATE = "bert by late interaction"  # its head reads the states of all tokens
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    LATE: {},
    "llama": {},
    "modernbert": {"local_attention": 32, "cls_token_id": 2, "sep_token_id": 3},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"], "attn_logit_softcapping": 0.5},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}


def built(family: str, **more: Any) -> Any:
    """A model with windows of 16 tokens where its family has some, its keys shared by two heads each."""
    torch.manual_seed(0)
    own = {"sliding_window": 16, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
    settings = {**SMALL, "max_position_embeddings": 256, **own, **FAMILIES.get(family, {}), **more}
    config = AutoConfig.for_model(family.partition(" ")[0], **settings)
    model: Any = AutoModelForSequenceClassification.from_config(config).eval()
    if family == LATE:
        give_late_interaction(model)
    return model


def packed(model: Any) -> PackedBatch:
    """Pairs of 2 to 200 tokens in rows of 256, with empty slots."""
    lengths = np.array([2, 200, 30, 97, 64, 150])
    tokens = np.random.default_rng(0).integers(4, SMALL["vocab_size"], lengths.sum()).astype(np.int32)
    pairs = FlatPairs(tokens, lengths, lengths // 2, np.zeros(len(lengths), np.bool_))
    return Layout(256, 8, pool_last=is_decoder(model)).pack(pairs)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """transformers compiles FlexAttention, which takes a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_mask_is_block_diagonal_and_finite() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = Visible(segments, causal=False).mask(torch.float16)[0, 0] == 0
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    causal = Visible(segments, causal=True).mask(torch.float16)[0, 0]
    assert (causal == 0).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert (Visible(torch.ones(1, 4), causal=False, reach=2).mask(torch.float16)[0, 0] == 0).tolist() == [
        [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1],
    ]  # fmt: skip
    assert causal.isfinite().all()
    assert causal.min() == MASKED
    apart = Visible(torch.ones(1, 4), causal=False, sides=torch.tensor([[0, 0, 1, 1]])).mask(torch.float16)[0, 0] == 0
    assert apart.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    causal=st.booleans(),
    reach=st.none() | st.integers(1, 9),
    apart=st.booleans(),
)
def test_blocks_pooled_rows_and_sequences_are_those_of_the_mask(
    lengths: list[int], causal: bool, reach: int | None, apart: bool
) -> None:
    row = torch.cat([torch.full((length,), place) for place, length in enumerate(lengths, start=1)])
    segments = torch.stack([row, torch.cat([row[1:], torch.zeros(1)])]).long()
    size = len(row)
    visible = Visible(segments, causal, reach, torch.randint(2, (2, size)) if apart else None)
    seen_R1LL = visible.mask(torch.float32) == 0
    assert torch.equal(create_mask(visible.blocks().mask_mod, 2, 1, size, size, device="cpu"), seen_R1LL)
    positions = torch.randint(size, (2, 3))
    pooled_R1SL = visible.mask(torch.float32, positions) == 0
    assert torch.equal(pooled_R1SL[:, 0], torch.stack([seen_R1LL[place, 0, positions[place]] for place in range(2)]))
    starts, longest, _ = visible.sequences()  # whatever the sides
    ids = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff()).reshape(2, size)
    assert torch.equal(ids[:, :, None] == ids[:, None], segments[:, :, None] == segments[:, None])
    assert (longest, starts.dtype) == (int(starts.diff().max()), torch.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_scores_as_the_dense_kernel_does(family: str, uncompiled: None) -> None:
    model = built(family)
    batch = packed(model)
    dense = PackedScorer(model).score(batch)
    use_kernel(model, "flex", training=False)
    np.testing.assert_allclose(PackedScorer(model).score(batch), dense, atol=1e-5, rtol=0)
    assert np.ptp(dense) > 0.01
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(PackedScorer(model).score(batch), dense, atol=0.1 + 0.1 * np.abs(dense).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_dropout_in_attention_trains_by_the_dense_kernel(family: str) -> None:
    """Gemma 2 caps its logits, which SDPA cannot."""
    name = "attention_probs_dropout_prob" if family in ("bert", LATE) else "attention_dropout"
    model = built(family, **{name: 0.5}).train()
    use_kernel(model, "dense", training=True)
    first, second = (PackedScorer(model).score(packed(model)) for _ in range(2))
    assert np.isfinite(first).all()
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_kept_ones_are_as_many_as_dropout_leaves(dropout: float) -> None:
    torch.manual_seed(0)
    share = kept(torch.Size([3, 7, 9999]), dropout).double().mean().item()
    assert share == pytest.approx(1 - dropout, abs=4 * (dropout * (1 - dropout) / (3 * 7 * 9999)) ** 0.5)


def test_attention_that_drops_out_is_right_on_average() -> None:
    """Outputs and gradients, with masks of whole rows and of pooled tokens, beside those of SDPA without dropout."""
    torch.manual_seed(0)
    states = [torch.randn(1, 2, size, 8, requires_grad=True) for size in (5, 16, 16)]
    mask = Visible(torch.tensor([[1] * 9 + [2] * 7]), causal=False).mask(
        torch.float32, torch.tensor([[0, 3, 9, 12, 15]])
    )
    direction = torch.randn(1, 5, 2, 8)

    def attended(dropout: float) -> list[Tensor]:
        query, key, value = states
        output, _ = dense_attention(None, query, key, value, mask, scaling=0.3, dropout=dropout)
        return [output.detach(), *torch.autograd.grad(output, states, direction)]

    drawn = [attended(0.5) for _ in range(500)]
    for each, whole in zip(zip(*drawn, strict=True), attended(0.0), strict=True):
        mean, error = torch.stack(each).mean(0), torch.stack(each).std(0) / len(each) ** 0.5
        assert bool(((mean - whole).abs() < 6 * error + 1e-6).all())
    assert not torch.equal(drawn[0][0], drawn[1][0])


def attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, _: Tensor, longest: int, __: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """``varlen_attn`` on a processor, as PyTorch documents it: [T, heads, D], window_size tokens to either side."""
    parts = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert end - start <= longest
        places = torch.arange(end - start)
        ahead = places[None] - places[:, None]
        left, right = window_size
        seen = (ahead <= right if right >= 0 else ahead == ahead) & (ahead >= -left if left >= 0 else ahead == ahead)
        own = [each[start:end].transpose(0, 1)[None] for each in (query, key, value)]
        attended = F.scaled_dot_product_attention(
            own[0], own[1], own[2], attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gemma2", LATE}))
def test_varlen_gives_its_kernel_the_pairs_and_their_windows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(family)
    batch = packed(model)
    dense = PackedScorer(model).score(batch)
    monkeypatch.setattr(attention, "varlen_attn", attend_one_by_one)
    use_kernel(model, "varlen", training=False)
    np.testing.assert_allclose(PackedScorer(model).score(batch), dense, atol=1e-5, rtol=0)


def test_a_kernel_leaves_the_last_layer_to_pooled_tokens_and_nothing_in_a_checkpoint() -> None:
    model = built("modernbert")
    saved = model.config.to_json_string()
    use_kernel(model, "flex", training=True)
    assert reads_pooled_tokens(model)
    assert model.config.to_json_string() == saved


def test_the_teacher_scores_alike(bert: Path, data: Path, tmp_path: Path, uncompiled: None) -> None:
    for kernel in ("dense", "flex"):
        output = tmp_path / f"{kernel}.parquet"
        run(score, "--model", bert, "--data", data, "--output", output, "--attention", kernel)
    dense, flex = (read_scores(str(tmp_path / f"{kernel}.parquet")) for kernel in ("dense", "flex"))
    for query, documents in dense.items():
        assert flex[query] == pytest.approx(documents, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "kernel", "more", "reason"),
    [
        ("bert", "flex", {"attention_probs_dropout_prob": 0.1}, r"has 0.1 \(attention_probs_dropout_prob\)"),
        ("modernbert", "varlen", {"attention_dropout": 0.2}, r"has 0.2 \(attention_dropout\)"),
        ("gemma2", "varlen", {}, "cannot cap its logits"),
        (LATE, "varlen", {"attention_probs_dropout_prob": 0.0}, "cannot keep query and document apart"),
        ("mpnet", "flex", {"attention_probs_dropout_prob": 0.0}, "no attention but its own"),
    ],
)
def test_a_model_that_a_kernel_cannot_take_is_named(
    family: str, kernel: Any, more: dict[str, float], reason: str
) -> None:
    with pytest.raises(KernelError, match=reason):
        use_kernel(built(family, **more), kernel, training=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_for_gpus_are_refused_on_a_processor(
    llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = ["--model", llama, "--data", data, "--output_dir", tmp_path / "out", "--bf16", "true"]
    scored = ["--data", data, "--output", tmp_path / "scores.parquet"]
    assert "flex trains on GPUs only" in fails(rank_sft, capsys, *trained, "--attention", "flex")
    assert "needs an NVIDIA GPU" in fails(rank_sft, capsys, *trained, "--attention", "varlen")
    varlen = ["--precision", "bf16", "--attention", "varlen"]
    assert "needs an NVIDIA GPU" in fails(score, capsys, "--model", llama, *scored, *varlen)
    assert "--attention is for a --model" in fails(score, capsys, "--run", data, *scored, "--attention", "flex")
