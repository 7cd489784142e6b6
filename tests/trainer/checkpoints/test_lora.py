"""LoRA adapters, merged into the result or kept in PEFT's format until someone merges them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import build_engines
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_llm
from tests.support.scores import packed_scores, plain_scores
from tests.support.stages import FEW, fails, run
from trainer import evaluate, init, merge, pretrain, rank_sft, score
from trainer.checkpoints.load import load_scorer
from trainer.checkpoints.lora import LoraArguments, add_adapters

RANK = 4
LORA = [*FEW, "--lora_rank", RANK, "--lora_dropout", 0.1, "--learning_rate", "3e-3"]
KEPT = ["--lora_merge", "false"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """One training of a scorer and one of a language model, each merged and kept."""
    root = tmp_path_factory.mktemp("runs")
    tiny_llm(root / "llama")
    source = ["--model", root / "llama", "--data", data, *LORA]
    for stage, name in ((rank_sft, "scorer"), (pretrain, "cpt")):
        run(stage, *source, "--output_dir", root / name)
        run(stage, *source, "--output_dir", root / f"{name}-adapter", *KEPT)
    return root


def test_a_merged_teacher_scores_the_same_in_transformers(runs: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(runs / "scorer")
    head = load_file(runs / "scorer/model.safetensors")["score.weight"]
    assert torch.equal(plain.score.weight, head)
    assert torch.equal(load_scorer(runs / "scorer").score.weight, head)
    theirs = plain_scores(plain, runs / "scorer", PairEncoder.load(runs / "scorer"))
    assert np.abs(theirs - packed_scores(runs / "scorer")).max() < 1e-5
    assert theirs.std() > 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT, by transformers
def test_a_kept_adapter_is_pefts(runs: Path) -> None:
    """PEFT loads it beside the base, head and all, and scores as the run that merged."""
    directory = runs / "scorer-adapter"
    assert not list(directory.glob("model*")) and not (directory / "config.json").exists()
    base = AutoModelForSequenceClassification.from_pretrained(runs / "llama", num_labels=1)
    model: Any = PeftModel.from_pretrained(base, str(directory))
    theirs = plain_scores(model, directory, PairEncoder.load(directory))
    assert np.abs(theirs - packed_scores(runs / "scorer")).max() < 1e-5

    llama = AutoModelForCausalLM.from_pretrained(runs / "llama")
    language: Any = PeftModel.from_pretrained(llama, runs / "cpt-adapter")
    merged = AutoModelForCausalLM.from_pretrained(runs / "cpt")
    tokens = torch.arange(10, 30)[None]
    with torch.inference_mode():
        assert torch.allclose(language.eval()(tokens).logits, merged.eval()(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["scorer", "cpt"])
def test_merging_later_gives_the_same_weights(runs: Path, tmp_path: Path, name: str) -> None:
    run(merge, "--adapter", runs / f"{name}-adapter", "--output_dir", tmp_path / "merged")
    at_once, later = (load_file(directory / "model.safetensors") for directory in (runs / name, tmp_path / "merged"))
    assert at_once.keys() == later.keys()
    assert all(torch.equal(weight, later[key]) for key, weight in at_once.items())
    for file in ("tokenizer.json", "pair_encoding.json"):
        assert (runs / name / file).read_bytes() == (tmp_path / "merged" / file).read_bytes()
    record = json.loads((tmp_path / "merged/training.json").read_text())
    assert record["adapter"]["arguments"]["lora_rank"] == 4


def test_commands_that_want_a_model_say_to_merge_first(
    runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = runs / "scorer-adapter", tmp_path / "out"
    for command, flags in (
        (score, ["--model", adapter, "--data", data, "--output", out]),
        (evaluate, ["--systems", f"T={adapter}", "--data", data]),
        (rank_sft, ["--model", adapter, "--data", data, "--output_dir", out]),
        (pretrain, ["--model", adapter, "--data", data, "--output_dir", out]),
        (init, ["--pretrained", adapter, "--output_dir", out]),
        (build_engines, ["--checkpoint", adapter, "--data", data, "--engine", "openvino", "--precision", "fp32"]),
    ):
        assert f"merge them first, with python -m trainer.merge --adapter {adapter}" in fails(command, capsys, *flags)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_merged_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, out = runs / "scorer-adapter", ["--output_dir", tmp_path / "out"]
    other = tiny_llama(tmp_path / "other", seed=7)
    message = fails(merge, capsys, "--adapter", adapter, "--base", other, *out)
    assert "is it the checkpoint that the adapter was trained on?" in message
    assert "no adapter here" in fails(merge, capsys, "--adapter", runs / "scorer", *out)
    broken = shutil.copytree(adapter, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    del weights["base_model.model.score.weight"]
    save_file(weights, broken / "adapter_model.safetensors")
    message = fails(merge, capsys, "--adapter", broken, *out)
    assert "does not fit the model: 'base_model.model.score.weight'" in message
    del weights["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    weights["base_model.model.score.weight"] = torch.zeros(1, 32)
    save_file(weights, broken / "adapter_model.safetensors")
    message = fails(merge, capsys, "--adapter", broken, *out)
    assert "does not fit the model: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in message
    assert {path.name for path in tmp_path.iterdir()} == {"other", "broken"}


def test_bad_choices_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = tiny_bert(tmp_path / "bert")
    flags = ["--model", bert, "--data", data, "--output_dir", tmp_path / "out", *KEPT]
    assert "--lora_merge false keeps adapters: it needs --lora_rank" in fails(rank_sft, capsys, *flags)
    message = fails(rank_sft, capsys, *flags, *LORA)
    assert "--lora_merge false is for LLMs, not for a bert model" in message


def test_an_encoders_adapters_stay_in_its_layers(data: Path, tmp_path: Path) -> None:
    """BERT's pooler has a matrix of the name of those in its layers; it stays as it was."""
    bert = tiny_bert(tmp_path / "bert")
    run(rank_sft, "--model", bert, "--data", data, "--output_dir", tmp_path / "scorer", *LORA)
    before, after = load_file(bert / "model.safetensors"), load_file(tmp_path / "scorer/model.safetensors")
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert {name.partition(".")[0] for name in moved} == {"bert", "classifier"}
    assert all(".layer." in name for name in moved if name.startswith("bert"))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", {"classifier"}), ("distilbert", {"pre_classifier", "classifier"}),
        ("modernbert", {"head", "classifier"}), ("eurobert", {"dense", "classifier"}), ("roberta", {"classifier"}),
        ("llama", {"score"}),
    ],
)  # fmt: skip
def test_all_of_a_new_head_is_trained_beside_adapters(family: str, head: set[str]) -> None:
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "pad_token_id": 0, "dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2,
    }  # fmt: skip
    model: Any = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, num_labels=1, **sizes))
    add_adapters(model, LoraArguments(lora_rank=2), "drawn")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert {name.partition(".")[0] for name in trained} == head
    assert trained == {name for name, _ in model.named_parameters() if name.partition(".")[0] in head}


@pytest.mark.parametrize("name", ["scorer", "cpt"])
def test_adapters_move_matrices_by_their_rank_and_leave_the_rest_of_the_body(runs: Path, name: str) -> None:
    """A language model's head stays too; it is none of a scorer's."""
    before, after = (load_file(runs / run / "model.safetensors") for run in ("llama", name))
    for weight in before.keys() & after.keys():
        if "_proj" in weight:
            assert torch.linalg.matrix_rank(after[weight] - before[weight], tol=1e-6) == RANK, weight
        else:
            assert torch.equal(after[weight], before[weight]), weight
