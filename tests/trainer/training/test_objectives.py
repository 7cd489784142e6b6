"""What rank_sft and distill make of their data, and the choices of their losses, on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig, Qwen3Config

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from tests.support.stages import FEW, fails, run
from trainer import distill, pretrain, rank_sft
from trainer.checkpoints.layers import keep_layers
from trainer.checkpoints.load import CheckpointError, PackedScorer, load_scorer
from trainer.data.rankings import write_scores
from trainer.data.records import JudgedDocument, QueryGroup, read_groups
from trainer.training.batches import TrainingGroup
from trainer.training.held_out import HeldOut
from trainer.training.streams import GroupList

LEARNING = ["--max_steps", "45", "--per_device_train_batch_size", "4", "--learning_rate", "5e-3", *FEW[4:]]
Scorer = Callable[[int, int], float]  # of query and document, by number


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "judged.jsonl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert", layers=4)


def teacher(path: Path, groups: list[QueryGroup], score: Scorer, without: str = "") -> Path:
    rows = [
        (group.query_id, document.doc_id, score(number, place))
        for number, group in enumerate(groups)
        for place, document in enumerate(group.documents)
        if document.doc_id != without
    ]
    write_scores(path, rows, teacher=path.stem)
    return path


def words(document: JudgedDocument) -> float:
    return float(len(f"{document.title} {document.summary}".split()))


def learnt(checkpoint: Path) -> bool:
    """Whether the loss has gone down, over a third of the steps at each end."""
    curve = [point["loss"] for point in json.loads((checkpoint / "training.json").read_text())["loss_curve"]]
    third = len(curve) // 3
    return bool(np.mean(curve[-third:]) < 0.9 * np.mean(curve[:third]))


def test_standardised_scores_have_mean_0_and_deviation_1(data: Path, tmp_path: Path) -> None:
    groups = read_groups(data)
    path = teacher(tmp_path / "t.parquet", groups, lambda _, place: 0.1 * place)
    teach = distill.Taught([distill.read_teacher(str(path))])
    taught = [chosen for group in groups if (chosen := teach(group))]
    targets = np.concatenate([group.targets for group in taught])
    assert targets.mean() == pytest.approx(0, abs=1e-6)
    assert targets.std() == pytest.approx(1)
    labels = [label for group in taught for label in group.labels]
    known = [document.label for group in groups for document in group.documents]
    assert all(
        math.isnan(ours) if theirs is None else ours == theirs for ours, theirs in zip(labels, known, strict=True)
    )


def test_teachers_of_different_scales_count_alike(data: Path, tmp_path: Path) -> None:
    groups = read_groups(data)
    up = teacher(tmp_path / "up.parquet", groups, lambda _, place: 100.0 * place)
    down = teacher(tmp_path / "down.parquet", groups, lambda _, place: -0.01 * place)
    teach = distill.Taught([distill.read_teacher(str(path)) for path in (up, down)])
    taught = [chosen for group in groups if (chosen := teach(group))]
    assert np.allclose([target for group in taught for target in group.targets], 0, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--objective", "ranknet"],
        ["--objective", "kl", "--temperature", "2"],
        ["--pointwise_weight", "0"],
        ["--margin_weight", "0", "--label_weight", "0.5"],
        ["--documents_per_query", "3", "--student_layers", "2"],
    ],
)
def test_every_way_to_distil_learns(bert: Path, data: Path, tmp_path: Path, flags: list[str]) -> None:
    """The student is taught that longer documents are better, and finds that out."""
    groups = read_groups(data)
    longer = teacher(tmp_path / "t.parquet", groups, lambda query, place: words(groups[query].documents[place]))
    source = ["--model", bert, "--data", data, "--scores", longer]
    run(distill, *source, "--output_dir", tmp_path / "student", *LEARNING, *flags)
    assert learnt(tmp_path / "student")
    layers = 2 if "--student_layers" in flags else 4
    assert load_scorer(tmp_path / "student").config.num_hidden_layers == layers


@pytest.mark.parametrize("objective", ["pairwise_logistic", "pairwise_hinge", "lambda_rank", "listwise_softmax"])
def test_every_rank_objective_learns(bert: Path, data: Path, tmp_path: Path, objective: str) -> None:
    gaps = ["--gap_weights", "true"] if objective == "pairwise_hinge" else []
    flags = ["--model", bert, "--data", data, "--output_dir", tmp_path / "scorer", "--objective", objective]
    run(rank_sft, *flags, *LEARNING, *gaps)
    assert learnt(tmp_path / "scorer")


def test_documents_are_drawn_anew_in_each_epoch_with_their_targets(data: Path) -> None:
    group = read_groups(data)[0]
    numbers = tuple(float(place) for place in range(len(group.documents)))
    groups = GroupList([TrainingGroup("q", group.query, group.documents, numbers, numbers)] * 3, 3, seed=0)
    seen = set()
    for epoch in range(10):
        groups.set_epoch(epoch)
        drawn = groups[0]
        assert drawn == groups[0]  # whenever it is asked for
        assert drawn.targets == drawn.labels
        assert [group.documents[int(target)] for target in drawn.targets] == list(drawn.documents)
        assert len(set(drawn.targets)) == 3
        seen.add(drawn.targets)
    assert len(seen) > 3
    assert len({groups[index].targets for index in range(3)}) > 1


@pytest.mark.parametrize("config", [BertConfig, LlamaConfig, Qwen3Config])
def test_kept_layers_are_the_first_the_last_and_evenly_between(config: Any) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 50, "pad_token_id": 0}
    if config is not BertConfig:
        small |= {"num_key_value_heads": 2, "head_dim": 8}
    model: Any = AutoModelForSequenceClassification.from_config(config(**small, num_hidden_layers=12, num_labels=1))
    layers = next(list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    keep_layers(model, 6)
    kept = next(list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    assert [layers.index(layer) for layer in kept] == [0, 2, 4, 7, 9, 11]
    assert model.config.num_hidden_layers == 6
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
    with pytest.raises(CheckpointError, match="cannot keep 7 layers of a model that has 6"):
        keep_layers(model, 7)


def test_bad_choices_are_refused(bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = read_groups(data)
    some = teacher(tmp_path / "some.parquet", groups, lambda _, place: float(place), without="d1")
    taught = ["--model", bert, "--data", data, "--scores", some, "--output_dir", tmp_path / "out", *FEW]
    judged = ["--model", bert, "--data", data, "--output_dir", tmp_path / "out", *FEW]
    missing = f"{len(groups)} pairs have no teacher score, the first is document 'd1' of query 'q0'"
    assert missing in fails(distill, capsys, *taught)
    assert "--temperature must be above 0" in fails(distill, capsys, *taught, "--temperature", 0)
    assert "--label_weight must be at least 0" in fails(distill, capsys, *taught, "--label_weight", 1.5)
    weights = ["--pointwise_weight", 0, "--margin_weight", 0]
    assert "nor both 0" in fails(distill, capsys, *taught, *weights)
    assert "at least 2, not 1" in fails(distill, capsys, *taught, "--documents_per_query", 1)
    whole = teacher(tmp_path / "whole.parquet", groups, lambda _, place: float(place))
    assert "cannot keep 9 layers" in fails(distill, capsys, *taught, "--scores", whole, "--student_layers", 9)
    lists = ["--objective", "listwise_softmax", "--gap_weights", "true"]
    assert "--gap_weights is for the pairwise objectives" in fails(rank_sft, capsys, *judged, *lists)
    assert {path.name for path in tmp_path.iterdir()} == {"some.parquet", "whole.parquet"}


def test_lora_trains_adapters_and_leaves_a_plain_checkpoint(data: Path, tmp_path: Path) -> None:
    """What is frozen is as it was, what is adapted has moved by a matrix of the rank, the head has moved."""
    llama = tiny_llama(tmp_path / "llama")
    flags = ["--model", llama, "--data", data, "--output_dir", tmp_path / "scorer", "--learning_rate", "3e-3"]
    run(rank_sft, *flags, *FEW, "--lora_rank", 2, "--lora_dropout", 0.1)
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "scorer/model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        rank = torch.linalg.matrix_rank(after[name] - weight, tol=1e-6) if weight.ndim == 2 else None
        if "_proj" in name:
            assert rank == 2, name
        else:
            assert torch.equal(after[name], weight) == (name != "score.weight"), name


def test_lora_in_continued_pre_training(data: Path, tmp_path: Path) -> None:
    llama = tiny_llama(tmp_path / "llama")
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama)
    flags = ["--model", llama, "--data", data, "--output_dir", tmp_path / "cpt", "--learning_rate", "3e-3"]
    run(pretrain, *flags, *FEW, "--lora_rank", 2)
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "cpt/model.safetensors")
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved == {name for name in before if "_proj" in name}


def test_the_best_checkpoint_on_held_out_queries_wins(bert: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--model", bert, "--data", data, "--held_out", data, "--output_dir", tmp_path / "scorer"]
    steps = ["--max_steps", 20, "--save_steps", 2, "--learning_rate", "0.02", "--per_device_train_batch_size", 4]
    run(rank_sft, *flags, *steps, *FEW[4:])
    looks = json.loads((tmp_path / "scorer/training.json").read_text())["held_out"]
    values = [look["eval_nDCG@10"] for look in looks]
    assert len(values) == 10
    assert len(set(values)) > 2
    held_out = HeldOut(read_groups(data), None)
    best = held_out.evaluate(PackedScorer(load_scorer(tmp_path / "scorer")), PairEncoder.load(bert))
    assert best["eval_nDCG@10"] == max(values)


def test_training_ends_early_when_held_out_queries_gain_no_more(bert: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--model", bert, "--data", data, "--held_out", data, "--output_dir", tmp_path / "scorer"]
    steps = ["--max_steps", 50, "--save_steps", 1, "--learning_rate", "1e-9", "--early_stop", 3]
    run(rank_sft, *flags, *steps, *FEW[4:])
    looks = json.loads((tmp_path / "scorer/training.json").read_text())["held_out"]
    assert len(looks) == 4  # the first is the best so far, three others were no better
