"""Flags of transformers' Trainer on a processor alone: what it cannot do ends with one line, before data are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.support.stages import FEW, fails, run
from trainer import rank_sft

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--fp16 true", "--fp16"),
        ("--fp16 true --bf16 true", "fp16 and bf16"),
        ("--fp16_full_eval true", "--fp16_full_eval"),
        ("--bf16_full_eval true", "--bf16_full_eval"),
        ("--tf32 true", "--tf32"),
        ("--fsdp full_shard", "--fsdp is for several processes"),
        ("--fsdp full_shard --bf16 true", "--fsdp is for several processes"),
        ("--deepspeed nowhere.json", "deepspeed"),
        ("--ddp_backend nccl", "--ddp_backend is for several processes"),
        ("--attention varlen --bf16 true", "--attention varlen"),
        ("--optim adamw_bnb_8bit", "bitsandbytes"),
        ("--adam_beta1 2", "beta"),
        ("--lr_scheduler_type cosine_with_min_lr", "min_lr"),
        ("--lr_scheduler_type warmup_stable_decay", "num_decay_steps"),
        ('--lr_scheduler_kwargs {"x":1}', "'x'"),
        ("--per_device_train_batch_size 0", "at least 1, not 0"),
        ("--gradient_accumulation_steps 0", "at least 1, not 0"),
        ("--dataloader_num_workers -1", "at least 0, not -1"),
        ("--dataloader_persistent_workers true", "needs --dataloader_num_workers"),
        ("--train_sampling_strategy group_by_length", "group_by_length"),
        ("--save_strategy best", "--save_strategy best"),
        ("--eval_on_start true", "needs --held_out"),
        ("--seed -1", "--seed must be"),
    ],
)
def test_what_cannot_be_is_named(flags: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    message = fails(rank_sft, capsys, "--model", "m", "--data", "d", "--output_dir", tmp_path / "out", *flags.split())
    assert named in message
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


def test_bf16_is_for_processors_too(llm: Path, data: Path, tmp_path: Path) -> None:
    """transformers wants --use_cpu then."""
    run(rank_sft, "--model", llm, "--data", data, "--output_dir", tmp_path / "out", *FEW, "--bf16", "true")
    settings = json.loads((tmp_path / "out/training.json").read_text())["training"]
    assert (settings["bf16"], settings["use_cpu"]) == (True, True)
