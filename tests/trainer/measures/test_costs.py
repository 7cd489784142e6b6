"""The rules of thumb next to real models: bytes that a step leaves and peaks at, FLOPs that PyTorch counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.memory import Peak
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import training_groups
from trainer.checkpoints.frozen import round_frozen
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.measures.costs import Shape, Work, flops_per_token, memory_bytes, read_shape, trained_parameters
from trainer.packed.heads import give_late_interaction, has_late_interaction
from trainer.training.batches import LanguageBatch, LanguageCollator
from trainer.training.in_parts import use_packed_forward

BF16_ROWS = 8  # of more, processors without units for bf16 take seconds each
FACTOR = 1.5  # that trainer/measures/costs.py promises
COMMON = {
    "vocab_size": 512, "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    # With dropout in attention, SDPA on a CPU leaves its fused kernel, which GPUs do not.
    "bert": {"attention_probs_dropout_prob": 0.0},
    "bert by late interaction": {
        "model_type": "bert",
        "pair_pooling": "late_interaction",
        "attention_probs_dropout_prob": 0.0,
    },
    "modernbert": {
        "local_attention": 32,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
    },
}


@pytest.fixture(scope="module")
def batch(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageBatch:
    """Packed rows of real pairs, [R, L] with L = 64."""
    return LanguageCollator(PairEncoder.load(llama))(training_groups(tmp_path_factory.mktemp("batch")))


def built(
    directory: Path, family: str, causal: bool = False, rank: int = 0, checkpointing: bool = False, frozen: str = "fp32"
) -> tuple[Any, Shape]:
    """A real model in training mode, its forward packed, and the shape that is read of its configuration."""
    path = directory / "config.json"
    path.write_text(json.dumps({"model_type": family, **COMMON, **FAMILIES[family]}))
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_config(AutoConfig.from_pretrained(path, num_labels=1), dtype=torch.float32)
    if has_late_interaction(model):
        give_late_interaction(model)
    add_adapters(model, LoraArguments(lora_rank=rank), family)
    if frozen == "bf16":
        round_frozen(model)
    use_packed_forward(model).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    return model, read_shape(str(path), causal)


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


@pytest.mark.parametrize(
    ("family", "causal", "rank", "checkpointing", "bf16", "frozen"),
    [
        ("llama", False, 0, False, False, "fp32"), ("qwen3", True, 0, False, True, "fp32"),
        ("qwen3", True, 0, True, True, "fp32"), ("bert", False, 0, False, True, "fp32"),
        ("bert", False, 0, True, False, "fp32"), ("llama", False, 4, False, False, "fp32"),
        ("llama", True, 4, False, True, "fp32"), ("llama", True, 4, True, True, "fp32"),
        ("llama", True, 4, False, True, "bf16"), ("qwen3", True, 4, True, True, "bf16"),
        ("bert", False, 4, False, True, "bf16"), ("modernbert", False, 0, False, False, "fp32"),
        ("bert by late interaction", False, 4, False, False, "fp32"),
    ],
)  # fmt: skip
def test_a_step_peaks_near_the_plan_and_leaves_what_it_says(
    tmp_path: Path,
    batch: LanguageBatch,
    family: str,
    causal: bool,
    rank: int,
    checkpointing: bool,
    bf16: bool,
    frozen: str,
) -> None:
    """It leaves weights, gradients and the moments of AdamW, which the plan has exactly."""
    model, shape = built(tmp_path, family, causal, rank, checkpointing, frozen)
    if bf16:
        batch = {**batch, "packed": {name: rows[:BF16_ROWS] for name, rows in batch["packed"].items()}}
    with Peak() as peak:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = forward(model, batch)
        torch.autograd.backward(output.square().mean())
    settings = work(batch, bf16=bf16, checkpointing=checkpointing, lora_rank=rank, frozen=frozen)
    parts = memory_bytes(shape, settings)
    made = ("gradients", "activations", "bf16 copies", "vocabulary logits")
    assert 1 / FACTOR < sum(parts[part] for part in made) / peak.bytes < FACTOR
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    optimiser.step()
    assert trained_parameters(shape, settings) == sum(weight.numel() for weight in trained)
    assert parts["weights"] == size(model.parameters())
    assert parts["gradients"] == size(weight.grad for weight in trained)
    states = size(value for state in optimiser.state.values() for value in state.values())  # with a count for each
    assert parts["optimiser states"] == pytest.approx(states, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_scoring_peaks_near_the_plan(tmp_path: Path, batch: LanguageBatch, family: str) -> None:
    model, shape = built(tmp_path, family)
    with Peak() as peak, torch.inference_mode():
        forward(model.eval(), batch)
    assert 1 / FACTOR < memory_bytes(shape, work(batch, training=False))["activations"] / peak.bytes < FACTOR


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("family", "causal", "rank", "checkpointing"),
    [
        ("llama", False, 0, False), ("llama", True, 0, False), ("bert", False, 0, False), ("llama", True, 4, False),
        ("llama", False, 0, True), ("modernbert", False, 0, False), ("bert by late interaction", False, 0, False),
    ],
)  # fmt: skip
def test_flops_are_about_those_that_pytorch_counts(
    tmp_path: Path, batch: LanguageBatch, family: str, causal: bool, rank: int, checkpointing: bool, training: bool
) -> None:
    model, shape = built(tmp_path, family, causal, rank, checkpointing)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = forward(model, batch)
        if training:
            torch.autograd.backward(output.square().mean())
    planned = flops_per_token(shape, work(batch, lora_rank=rank, checkpointing=checkpointing, training=training))
    assert planned * batch["labels"].numel() == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_several_gpus_hold_buckets_or_shards(tmp_path: Path) -> None:
    _, shape = built(tmp_path, "llama")
    alone = memory_bytes(shape, Work(True, 1, 64))
    together = memory_bytes(shape, Work(True, 1, 64, gpus=4))
    assert together == {**alone, "exchange": alone["gradients"]}
    sharded = memory_bytes(shape, Work(True, 1, 64, gpus=4, fsdp=True))
    for part in ("weights", "gradients", "optimiser states"):
        assert sharded[part] == alone[part] / 4
    assert sharded["exchange"] == 4 * (shape.parameters - shape.matrices / 2)  # two of four layers
