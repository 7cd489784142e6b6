"""The plan against what real models do: bytes that a step leaves, tensors that autograd keeps, FLOPs that it counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_llama, write_groups
from tests.support.memory import Peak
from trainer import plan
from trainer.data.records import read_groups
from trainer.measures.costs import Shape, Work, flops_per_token, memory_bytes, read_shape, trained_parameters
from trainer.training.batches import LanguageBatch, LanguageCollator, TrainingGroup
from trainer.training.in_parts import use_packed_forward

# PEFT asks for an attribute by the name that transformers is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COMMON = {"vocab_size": 512, "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0}
SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2},
    "wide": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    # With dropout in attention, SDPA on a CPU leaves its fused kernel, which GPUs do not.
    "bert": {"attention_probs_dropout_prob": 0.0},
}
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
MACHINES = [
    "--gpus", "8", "--gpu_memory_gib", "80", "--peak_tflops", "1000", "--utilisation", "0.4", "--pairs", "59e6",
    "--fp32_tflops", "50",
]  # fmt: skip


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> LanguageBatch:
    """Packed rows of real pairs, [R, L] with L = 64."""
    root = tmp_path_factory.mktemp("batch")
    encoder = PairEncoder.load(tiny_llama(root / "llama"))
    return LanguageCollator(encoder)(
        [
            TrainingGroup(group.query_id, group.query, group.documents, (1.0,) * len(group.documents))
            for group in read_groups(write_groups(root / "judged.jsonl"))
        ]
    )


def written(directory: Path, config: dict[str, Any]) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def built(directory: Path, family: str, size: str, causal: bool = False, **more: Any) -> tuple[Any, Shape]:
    """A real model in training mode, its forward packed, and the shape that is read of its configuration."""
    path = written(directory, {"model_type": family, **COMMON, **SIZES[size], **FAMILIES[family], **more})
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_config(AutoConfig.from_pretrained(path, num_labels=1), dtype=torch.float32)
    return use_packed_forward(model).train(), read_shape(path, causal)


def with_adapters(model: Any, rank: int) -> Any:
    """The model under PEFT's LoRA; the packed forward stays the inner model's."""
    task = "CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS"
    return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type=task)).base_model.model


def work(batch: LanguageBatch, **settings: Any) -> Work:
    rows, row_length = batch["packed"]["input_ids"].shape
    return Work(settings.pop("training", True), rows, row_length, **settings)


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def forward(model: Any, batch: LanguageBatch) -> torch.Tensor:
    """Scores, or of a causal LM the losses of all its tokens."""
    labels = {} if model.get_output_embeddings() is None else {"labels": batch["packed"]["input_ids"]}
    output: torch.Tensor = model(**batch["packed"], **labels)
    return output


def step(model: Any, batch: LanguageBatch) -> torch.optim.Optimizer:
    """One step of AdamW, as a Trainer makes it."""
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    torch.autograd.backward(forward(model, batch).square().mean())
    optimiser.step()
    return optimiser


def saved_bytes(model: Any, batch: LanguageBatch, bf16: bool = False) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass, the parameters' own left out."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        output = forward(model, batch)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("family", "causal", "more"),
    [("llama", False, {}), ("bert", False, {}), ("llama", True, {}), ("qwen3", True, {"tie_word_embeddings": True})],
)
def test_weights_gradients_and_moments_are_what_a_step_leaves(
    tmp_path: Path, batch: LanguageBatch, family: str, causal: bool, more: dict[str, Any]
) -> None:
    model, shape = built(tmp_path, family, "small", causal, **more)
    optimiser = step(model, batch)
    parts = memory_bytes(shape, work(batch))
    assert parts["weights"] == size(model.parameters())
    assert parts["gradients"] == size(weight.grad for weight in model.parameters())
    assert parts["optimiser states"] == size(value for state in optimiser.state.values() for value in state.values())


@pytest.mark.parametrize("causal", [False, True])
def test_lora_trains_what_peft_trains(tmp_path: Path, batch: LanguageBatch, causal: bool) -> None:
    model, shape = built(tmp_path, "llama", "small", causal)
    model = with_adapters(model, rank=4)
    optimiser = step(model, batch)
    settings = work(batch, lora_rank=4)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    parts = memory_bytes(shape, settings)
    assert trained_parameters(shape, settings) == sum(weight.numel() for weight in trained)
    assert parts["LoRA adapters"] == size(weight for name, weight in model.named_parameters() if "lora_" in name)
    assert parts["gradients"] == size(weight.grad for weight in trained)
    assert parts["optimiser states"] == size(value for state in optimiser.state.values() for value in state.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize(
    ("family", "rank", "least", "most"),
    [("llama", 0, 0.97, 1.03), ("qwen3", 0, 0.97, 1.03), ("llama", 4, 0.97, 1.1), ("bert", 0, 0.8, 1.03)],
)
def test_activations_are_what_autograd_keeps(
    tmp_path: Path, batch: LanguageBatch, family: str, rank: int, least: float, most: float, size_name: str,
    precision: str,
) -> None:  # fmt: skip
    model, shape = built(tmp_path, family, size_name)
    model = with_adapters(model, rank) if rank else model
    settings = work(batch, bf16=precision == "bf16", lora_rank=rank)
    parts = memory_bytes(shape, settings)
    measured = saved_bytes(model, batch, settings.bf16)
    ratio = (parts["activations"] + parts.get("bf16 copies", 0)) / measured
    assert least < ratio < most


def test_checkpointing_keeps_the_input_of_each_layer(tmp_path: Path, batch: LanguageBatch) -> None:
    kept, planned = [], []
    for layers in (2, 5):
        model, shape = built(tmp_path, "llama", "small", num_hidden_layers=layers)
        model.activation_checkpointing_enable({"use_reentrant": True})  # the kind whose tensors the hooks see
        kept.append(saved_bytes(model, batch))
        planned.append(memory_bytes(shape, work(batch, checkpointing=True))["activations"])
    assert planned[1] - planned[0] == kept[1] - kept[0] > 0
    assert kept[1] < planned[1] < memory_bytes(shape, work(batch))["activations"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("vocabulary", "checkpointing"), [(512, False), (512, True), (4000, False)])
def test_a_step_peaks_near_the_total(
    tmp_path: Path, batch: LanguageBatch, vocabulary: int, checkpointing: bool, bf16: bool
) -> None:
    model, shape = built(tmp_path, "llama", "small", causal=True, vocab_size=vocabulary, num_hidden_layers=4)
    if checkpointing:
        model.activation_checkpointing_enable()
    parts = memory_bytes(shape, work(batch, bf16=bf16, checkpointing=checkpointing))
    with Peak() as peak:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = forward(model, batch)
        torch.autograd.backward(losses.mean())
    planned = sum(parts.values()) - parts["weights"] - parts["optimiser states"]
    # A layer is computed again after the logits are gone, and the total has room for both.
    assert 0.95 < planned / peak.bytes < (1.7 if checkpointing else 1.1)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_scoring_peaks_below_what_one_layer_keeps_in_training(
    tmp_path: Path, batch: LanguageBatch, family: str
) -> None:
    model, shape = built(tmp_path, family, "wide")
    with Peak() as peak, torch.inference_mode():
        forward(model.eval(), batch)
    planned = memory_bytes(shape, work(batch, training=False))["activations"]
    assert 1 <= planned / peak.bytes < 3


@pytest.mark.parametrize(
    ("family", "causal", "rank", "training"),
    [
        ("llama", False, 0, True), ("llama", True, 0, True), ("bert", False, 0, True), ("llama", False, 4, True),
        ("llama", True, 4, True), ("llama", False, 0, False), ("bert", False, 0, False),
    ],
)  # fmt: skip
def test_flops_are_those_that_pytorch_counts(
    tmp_path: Path, batch: LanguageBatch, family: str, causal: bool, rank: int, training: bool
) -> None:
    model, shape = built(tmp_path, family, "small", causal)
    model = with_adapters(model, rank) if rank else model
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = forward(model, batch)
        if training:
            torch.autograd.backward(output.square().mean())
    planned = flops_per_token(shape, work(batch, lora_rank=rank, training=training))
    assert planned * batch["labels"].numel() == pytest.approx(counter.get_total_flops(), rel=0.05 if rank else 0.02)


def test_checkpointing_adds_a_forward_pass_of_the_layers(tmp_path: Path, batch: LanguageBatch) -> None:
    model, shape = built(tmp_path, "llama", "wide")
    model.activation_checkpointing_enable()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(forward(model, batch).square().mean())
    planned = flops_per_token(shape, work(batch, checkpointing=True)) * batch["labels"].numel()
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_several_gpus_hold_buckets_or_shards(tmp_path: Path) -> None:
    shape = read_shape(written(tmp_path, {"model_type": "llama", **COMMON, **SIZES["wide"]}), causal=False)
    alone = memory_bytes(shape, Work(True, 1, 64))
    together = memory_bytes(shape, Work(True, 1, 64, gpus=4))
    assert "exchange" not in alone
    assert together == {**alone, "exchange": alone["gradients"]}
    sharded = memory_bytes(shape, Work(True, 1, 64, gpus=4, fsdp=True))
    for part in ("weights", "gradients", "optimiser states"):
        assert sharded[part] == alone[part] / 4
    half_of_the_layers = shape.layer_parameters / 2  # two of four
    assert sharded["exchange"] == 4 * (shape.parameters - half_of_the_layers)


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
    (verdicts,) = (line for line in printed.out.splitlines() if "fits into 80" in line)
    assert re.findall("yes|NO", verdicts) == ["NO", "NO", "yes", "yes"]
    assert student["parameters"] == 109_483_009  # 109,482,240 of the body and 769 of the head
    assert (score["precision"], first["precision"]) == ("fp32", "bf16")
    # 6 x (6.98e9 in the layers and 0.525e9 of the vocabulary), and attention's 3 x 4 x 1024 x 4096 x 32
    assert first["flops_per_token"] == pytest.approx(6 * (6_979_321_856 + 525_336_576) + 3 * 4 * 1024 * 4096 * 32)
    assert first["tokens_per_second"] == pytest.approx(8 * 1000e12 * 0.4 / first["flops_per_token"])
    assert score["tokens_per_second"] == pytest.approx(8 * 50e12 * 0.4 / score["flops_per_token"])
    assert first["days"] == pytest.approx(59e6 * 150 / first["tokens_per_second"] / 86400)
    assert first["pairs_per_second_needed"] == pytest.approx(59e6 / 864000)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    flags = ["--model", written(tmp_path, LLAMA_8B), *MACHINES[:-2], "--output", str(output), "--lora_rank", "16"]
    assert plan.main([*flags, "--stages", "rank_sft", "score", "distill", "--epochs", "2"]) == 0
    said = capsys.readouterr().err
    assert "distill is left out" in said and "score computes in float32" in said
    ranking, score = json.loads(output.read_text())
    assert ranking["trained_parameters"] == 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 4096
    assert "LoRA adapters" not in score["memory_gib"] and score["trained_parameters"] == 0
    assert ranking["pairs_per_second_needed"] == pytest.approx(2 * score["pairs_per_second_needed"])


def test_scoring_in_bf16_halves_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    flags = ["--model", written(tmp_path, LLAMA_8B), *MACHINES[:-2], "--output", str(output), "--stages", "score"]
    assert plan.main([*flags, "--score_precision", "bf16"]) == 0
    assert not capsys.readouterr().err
    (score,) = json.loads(output.read_text())
    assert score["memory_gib"]["weights"] == pytest.approx(score["parameters"] * 2 / 2**30)
    assert score["tokens_per_second"] == pytest.approx(8 * 1000e12 * 0.4 / score["flops_per_token"])


def test_bad_input_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = written(tmp_path, {"model_type": "llama", **COMMON, **SIZES["small"]})
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
