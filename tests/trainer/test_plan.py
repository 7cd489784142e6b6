"""The plan of each stage: its table, its file and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainer import plan

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
MACHINES = [
    "--gpus", "8", "--gpu_memory_gib", "80", "--peak_tflops", "1000", "--utilisation", "0.4", "--pairs", "59e6",
    "--fp32_tflops", "50",
]  # fmt: skip


def written(directory: Path, config: dict[str, Any]) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_the_command_prints_and_writes_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published Llama 3 8B (8,030,261,248 parameters) and BERT base, without their weights."""
    teacher = written(tmp_path, LLAMA_8B)
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    output = tmp_path / "plan.json"
    flags = ["--model", teacher, *MACHINES, "--student", str(tmp_path / "bert.json"), "--output", str(output)]
    assert plan.main([*flags, "--days", "10"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(output.read_text())
    assert [row["stage"] for row in rows] == ["pretrain", "rank_sft", "score", "distill"]
    assert all(row["stage"] in printed.out and f"{row['parameters']:,}" in printed.out for row in rows)
    assert not printed.err
    first, _, score, student = rows
    assert first["parameters"] == 8_030_261_248
    assert first["memory_gib"]["weights"] == pytest.approx(8_030_261_248 * 4 / 2**30)
    assert not first["fits"] and student["fits"]  # 32 GB each of weights and gradients, 64 GB of moments
    (verdicts,) = (line for line in printed.out.splitlines() if "│ fits " in line)
    assert re.findall("yes|NO", verdicts) == ["NO", "NO", "yes", "yes"]
    assert student["parameters"] == 109_483_009  # 109,482,240 of the body and 769 of the head
    assert (score["precision"], first["precision"]) == ("fp32", "bf16")
    # 6 x (6.98e9 in the layers and 0.525e9 of the vocabulary), and attention's 3 x 4 x 1024 x 4096 x 32
    assert first["flops_per_token"] == pytest.approx(6 * (6_979_321_856 + 525_336_576) + 3 * 4 * 1024 * 4096 * 32)
    assert first["tokens_per_second"] == pytest.approx(8 * 1000e12 * 0.4 / first["flops_per_token"])
    assert score["tokens_per_second"] == pytest.approx(8 * 50e12 * 0.4 / score["flops_per_token"])
    assert first["days"] == pytest.approx(59e6 * 150 / first["tokens_per_second"] / 86400)
    assert first["pairs_per_second_needed"] == pytest.approx(59e6 / 864000)


def test_what_is_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    flags = ["--model", written(tmp_path, LLAMA_8B), *MACHINES[:-2], "--output", str(output), "--lora_rank", "16"]
    assert plan.main([*flags, "--stages", "rank_sft", "score", "distill"]) == 0
    printed = capsys.readouterr().err
    assert "distill is left out" in printed and "score computes in float32" in printed
    ranking, score = json.loads(output.read_text())
    assert ranking["trained_parameters"] == 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 4096
    assert score["trained_parameters"] == 0
    assert score["memory_gib"]["weights"] == pytest.approx(score["parameters"] * 4 / 2**30)
    assert plan.main([*flags, "--stages", "score", "--score_precision", "bf16"]) == 0
    assert not capsys.readouterr().err
    (half,) = json.loads(output.read_text())
    assert half["memory_gib"]["weights"] == score["memory_gib"]["weights"] / 2
    assert half["tokens_per_second"] == pytest.approx(8 * 1000e12 * 0.4 / half["flops_per_token"])


def test_matrices_that_lora_freezes_take_the_bits_of_training(tmp_path: Path) -> None:
    teacher, output = written(tmp_path, LLAMA_8B), tmp_path / "plan.json"
    flags = ["--model", teacher, *MACHINES, "--output", str(output), "--lora_rank", "16", "--stages", "rank_sft"]
    weights = {}
    for name, more in {
        "bf16": [], "4bit": ["--load_in_4bit", "true"], "fp32": ["--frozen_precision", "fp32"],
        "in fp32": ["--precision", "fp32"], "sharded": ["--sharding", "fsdp"],
    }.items():  # fmt: skip
        assert plan.main([*flags, *more]) == 0
        (row,) = json.loads(output.read_text())
        weights[name] = row["memory_gib"]["weights"] * 2**30
    matrices = 6_979_321_856
    assert weights["fp32"] == weights["in fp32"] == weights["sharded"] * 8
    assert weights["bf16"] == pytest.approx(weights["fp32"] - 2 * matrices)
    assert weights["4bit"] == pytest.approx(weights["fp32"] - (3.5 - 1 / 64) * matrices)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--load_in_4bit true", "it needs --lora_rank"),
        ("--frozen_precision bf16", "it needs --lora_rank"),
        ("--load_in_4bit true --lora_rank 8 --frozen_precision fp32", "does not go with --frozen_precision fp32"),
        ("--load_in_4bit true --lora_rank 8 --precision fp32", "it needs --precision bf16"),
        ("--frozen_precision bf16 --lora_rank 8 --precision fp32", "it needs --precision bf16"),
        ("--load_in_4bit true --lora_rank 8 --sharding fsdp", "fsdp shards it"),
        ("--frozen_precision bf16 --lora_rank 8 --sharding fsdp", "fsdp shards it"),
    ],
)
def test_what_training_refuses_is_not_planned(flags: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--model", "/nowhere", *MACHINES, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --") and reason in line


def test_bad_input_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = written(tmp_path, LLAMA_8B)
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "unknown.json").write_text('{"model_type": "never-heard-of"}')
    (tmp_path / "wrong.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    (tmp_path / "shared.json").write_text('{"model_type": "albert"}')
    for message, flags in (
        ("--utilisation 1.5: a share", ["--utilisation", "1.5"]),
        ("--utilisation 0.0: must be above 0", ["--utilisation", "0"]),
        ("--gpus 0: must be above 0", ["--gpus", "0"]),
        ("--pairs nan: must be above 0", ["--pairs", "nan"]),
        ("--fp32_tflops 0.0: must be above 0", ["--fp32_tflops", "0"]),
        ("--lora_rank -1: must be at least 0", ["--lora_rank", "-1"]),
        ("--pair_tokens 2000: longer than a row", ["--pair_tokens", "2000"]),
        ("--stages rank: the stages are", ["--stages", "rank"]),
        ("give its model with --student", ["--stages", "distill"]),
        ("no such checkpoint", ["--model", "/nowhere"]),
        ("not a checkpoint", ["--model", str(tmp_path / "empty")]),
        ("broken.json: no model whose cost is known", ["--model", str(tmp_path / "broken.json")]),
        ("unknown.json: no model whose cost is known", ["--model", str(tmp_path / "unknown.json")]),
        ("wrong.json: no model whose cost is known", ["--model", str(tmp_path / "wrong.json")]),
        ("needs a decoder", ["--model", str(tmp_path / "bert.json"), "--stages", "pretrain"]),
        ("are not one list of 12", ["--model", str(tmp_path / "shared.json"), "--stages", "rank_sft"]),
    ):
        assert plan.main(["--model", llama, *MACHINES, *flags]) == 2, flags
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and message in line
