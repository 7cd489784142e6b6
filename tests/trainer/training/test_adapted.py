"""Adapters beside matrices in bf16: the training, the result and its scores; what cannot be chosen."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support.checkpoints import SMALL, tiny_llama
from tests.support.stages import FEW, fails, run
from trainer import merge, pretrain, rank_sft
from trainer.checkpoints.frozen import check_four_bit, round_frozen
from trainer.checkpoints.load import Checkpoint, CheckpointError
from trainer.checkpoints.lora import LoraArguments, add_adapters, control_readings
from trainer.data.records import DataError
from trainer.training.adapted import Adapted
from trainer.training.run import StageArguments

LORA = ["--lora_rank", 4, "--lora_dropout", 0.1, "--bf16", "true"]


def started(directory: Path, bf16: bool = True) -> tuple[Adapted, Checkpoint]:
    training = StageArguments(output_dir="unused", bf16=bf16, use_cpu=True, report_to="none")
    start = Adapted(str(directory), False, LoraArguments(lora_rank=4), training)
    checkpoint = start.load()
    with torch.no_grad():  # as if they were trained: new adapters add nothing
        for name, weight in checkpoint.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return start, checkpoint


@pytest.mark.parametrize(("stage", "more"), [(rank_sft, ["--held_out"]), (pretrain, ["--lora_merge", "false"])])
def test_training_beside_bf16_is_the_same_to_the_last_bit(
    stage: Any, more: list[str], llm: Path, data: Path, tmp_path: Path
) -> None:
    """Autocast rounds float32 matrices for every product; the result has the checkpoint's own in both cases."""
    flags = ["--model", llm, "--data", data, *FEW, *LORA, *more, *([data] if "--held_out" in more else [])]
    for precision in ("fp32", "auto"):
        run(stage, *flags, "--frozen_precision", precision, "--output_dir", tmp_path / precision)
    whole, rounded = (tmp_path / precision for precision in ("fp32", "auto"))
    records = [json.loads((path / "training.json").read_text()) for path in (whole, rounded)]
    for curve in ("loss_curve", "held_out"):
        then, now = ([{**point, "eval_runtime": 0} for point in record[curve]] for record in records)
        assert then == now
    (name,) = (path.name for path in whole.glob("*.safetensors"))
    weights, same = load_file(whole / name), load_file(rounded / name)
    assert weights.keys() == same.keys()
    assert all(weight.dtype == torch.float32 and torch.equal(weight, same[key]) for key, weight in weights.items())


def test_kept_adapters_merge_to_what_the_stage_would_have_left(llm: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--model", llm, "--data", data, *FEW, *LORA]
    run(rank_sft, *flags, "--output_dir", tmp_path / "at-once")
    run(rank_sft, *flags, "--output_dir", tmp_path / "adapter", "--lora_merge", "false")
    run(merge, "--adapter", tmp_path / "adapter", "--output_dir", tmp_path / "later")
    at_once, later = (load_file(tmp_path / name / "model.safetensors") for name in ("at-once", "later"))
    assert all(torch.equal(weight, later[key]) for key, weight in at_once.items())


@pytest.mark.parametrize(("tied", "causal"), [(False, False), (False, True), (True, True)])
def test_only_frozen_matrices_are_in_bf16(tied: bool, causal: bool) -> None:
    """A vocabulary's matrix that is the embedding's too stays in float32."""
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_config(AutoConfig.for_model("qwen2", **SMALL, tie_word_embeddings=tied))
    add_adapters(model, LoraArguments(lora_rank=4), "drawn weights")
    round_frozen(model)
    products = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, weight in model.named_parameters():
        frozen_matrix = not weight.requires_grad and name.rpartition(".")[0] in products
        assert weight.dtype == (torch.bfloat16 if frozen_matrix else torch.float32), name
        assert weight.requires_grad == ("lora_" in name or name.startswith("score"))
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_the_result_scores_as_the_model_did_in_training(tmp_path: Path) -> None:
    """Published LLMs are in bf16, as this one is then: nothing was rounded away."""
    directory = tiny_llama(tmp_path / "llama")
    weights = load_file(directory / "model.safetensors")
    published = {name: weight.bfloat16().float() for name, weight in weights.items()}
    save_file(published, directory / "model.safetensors", metadata={"format": "pt"})
    start, (model, encoder, _) = started(directory)
    result = start.result(model)
    assert {weight.dtype for weight in result.parameters()} == {torch.float32}
    as_trained = control_readings(model.float(), encoder)
    np.testing.assert_allclose(control_readings(result, encoder), as_trained, atol=1e-5, rtol=0)
    assert np.std(as_trained) > 1e-2


def test_a_result_needs_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "llama")
    start, (model, *_) = started(directory)
    tiny_llama(tmp_path / "other", seed=1)
    (tmp_path / "other/model.safetensors").rename(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="has changed since the training began"):
        start.result(model)


def test_in_float32_the_model_itself_is_merged(tmp_path: Path) -> None:
    start, (model, encoder, _) = started(tiny_llama(tmp_path / "llama"), bf16=False)
    before = control_readings(model, encoder)
    assert start.result(model) is model
    np.testing.assert_allclose(control_readings(model, encoder), before, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--frozen_precision bf16", "needs --lora_rank"),
        ("--frozen_precision bf16 --lora_rank 4", "needs --bf16 true"),
        ("--frozen_precision int3 --lora_rank 4 --bf16 true", "invalid choice"),
        ("--load_in_4bit true", "needs --lora_rank"),
        ("--load_in_4bit true --lora_rank 4 --frozen_precision fp32", "does not go with"),
        pytest.param(
            "--load_in_4bit true --lora_rank 4 --bf16 true", "needs an NVIDIA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(
    flags: str, reason: str, llm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--model", llm, "--data", data, "--output_dir", tmp_path / "out"]
    assert reason in fails(rank_sft, capsys, *source, *flags.split())
    assert not list(tmp_path.iterdir())


def test_shards_keep_matrices_in_float32(
    llm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    source = ["--model", llm, "--data", data, "--output_dir", tmp_path / "out", *LORA]
    message = fails(rank_sft, capsys, *source, "--frozen_precision", "bf16")
    assert "for a whole model on each device, and fsdp shards it" in message


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_four_bits_name_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DataError, match=r"pip install 'disranker\[qlora\]'"):
        check_four_bit(4, "auto")
