"""Evaluations on held-out queries: the best checkpoint, an early end, and their memory."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llm, write_groups
from tests.support.stages import FEW, fails, finish, measured, run
from trainer import pretrain, rank_sft
from trainer.checkpoints.load import PackedScorer, load_checkpoint, load_scorer
from trainer.data.records import read_groups
from trainer.measures.metrics import MEASURE
from trainer.training.held_out import HeldOut, HeldOutArguments
from trainer.training.losses import margin_mse
from trainer.training.run import StageArguments
from trainer.training.trainers import LanguageTrainer, RankingTrainer, Term


def evaluations(bert: Path, data: Path, output: Path, *flags: object) -> list[float]:
    """The measure of a run on its held-out queries, which are those it trains on."""
    run(rank_sft, "--model", bert, "--data", data, "--held_out", data, "--output_dir", output, *flags, *FEW[4:])
    return [point["eval_nDCG@10"] for point in json.loads((output / "training.json").read_text())["held_out"]]


def test_the_best_checkpoint_on_held_out_queries_wins(deep_bert: Path, data: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", 20, "--save_steps", 2, "--learning_rate", "0.02", "--per_device_train_batch_size", 4]
    values = evaluations(deep_bert, data, tmp_path / "scorer", *steps)
    assert len(values) == 10
    assert len(set(values)) > 2
    assert measured(tmp_path / "scorer", data) == pytest.approx(max(values), abs=1e-9)


def test_the_lowest_loss_of_pre_training_on_held_out_clicks_wins(data: Path, tmp_path: Path) -> None:
    """By learning the one half of the data by heart, the model forgets the other after a while."""
    llm, lines = tiny_llm(tmp_path / "llm"), data.read_text().splitlines(keepends=True)
    for name, half in (("half", lines[::2]), ("other", lines[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(half))
    flags = ["--model", llm, "--data", tmp_path / "half.jsonl", "--held_out", tmp_path / "other.jsonl"]
    steps = ["--max_steps", 20, "--save_steps", 4, "--learning_rate", "0.05", "--per_device_train_batch_size", 4]
    run(pretrain, *flags, "--output_dir", tmp_path / "cpt", *steps, *FEW[4:])
    values = [point["eval_loss"] for point in json.loads((tmp_path / "cpt/training.json").read_text())["held_out"]]
    assert len(values) == 5
    assert min(values) < values[-1]
    best: Any = load_checkpoint(str(tmp_path / "cpt"), causal=True, seed=0)
    take = partial(pretrain.clicked, arguments=pretrain.PretrainArguments(model=""))
    held_out = pretrain.read_held_out(HeldOutArguments(held_out=[str(tmp_path / "other.jsonl")]), take)
    arguments = StageArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = LanguageTrainer(best.model, best.encoder, arguments, held_out=held_out)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(values), rel=1e-6)


def test_held_out_queries_without_clicks_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for document in (document for line in lines for document in line["documents"]):
        document["clicks"] = 0
    (tmp_path / "none.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--model", "x", "--data", "x", "--held_out", tmp_path / "none.jsonl", "--output_dir", tmp_path / "out"]
    assert "none.jsonl: no document has clicks" in fails(pretrain, capsys, *flags)


def test_training_ends_early_when_held_out_queries_gain_no_more(deep_bert: Path, data: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", 50, "--save_steps", 1, "--learning_rate", "1e-9", "--early_stop", 3]
    values = evaluations(deep_bert, data, tmp_path / "scorer", *steps)
    assert len(values) == 4  # the first is the best so far, three others were no better


@pytest.mark.parametrize(("queries", "documents"), [(1, 200), (100, 2)])
def test_an_evaluation_keeps_to_the_token_budget(queries: int, documents: int, tmp_path: Path) -> None:
    """Queries of any size go through the model two full rows at a time, as in a training step."""
    directory, rows = tiny_bert(tmp_path / "bert"), []
    groups = read_groups(write_groups(tmp_path / "data.jsonl", queries=queries, documents=documents))
    model: Any = load_scorer(directory)
    arguments = StageArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", token_budget=2 * 64)
    encoder, held_out = PairEncoder.load(directory), HeldOut(groups, MEASURE, None)
    trainer = RankingTrainer(model, encoder, [Term(1.0, margin_mse)], arguments, held_out=held_out)
    model.base_model.embeddings.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    trainer.evaluate()
    assert max(rows) == 2
    assert 50 <= sum(rows) < 100  # of 4 pairs at most, and of more than 2


def test_held_out_queries_are_scored_in_the_precision_of_the_training(
    deep_bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head computes in float32."""
    seen: set[tuple[str, torch.dtype]] = set()
    evaluate_held_out = HeldOut.evaluate

    def watched(self: HeldOut, scorer: PackedScorer, *arguments: Any) -> dict[str, Any]:
        for name, module in scorer.model.named_modules():
            if isinstance(module, nn.Linear):
                part = "layers" if ".layer." in name else "head"
                module.register_forward_hook(lambda *call, part=part: seen.add((part, call[2].dtype)))
        return evaluate_held_out(self, scorer, *arguments)

    monkeypatch.setattr(HeldOut, "evaluate", watched)
    flags = ["--max_steps", 1, "--save_steps", 1, "--bf16", "true", "--use_cpu", "true"]
    assert len(evaluations(deep_bert, data, tmp_path / "scorer", *flags)) == 1
    assert seen == {("layers", torch.bfloat16), ("head", torch.float32)}


def test_only_runs_that_keep_checkpoints_can_evaluate_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "x", "--data", "x", "--held_out", data, "--output_dir", tmp_path / "out"]
    error = fails(rank_sft, capsys, *flags, "--save_strategy", "no")
    assert "--held_out evaluates checkpoints: --save_strategy must be" in error
    assert "'P@0' looks at no document" in fails(rank_sft, capsys, *flags, "--measure", "P@0")


@pytest.mark.parametrize("stage", ["rank_sft", "pretrain"])
def test_patience_is_kept_when_a_run_resumes(stage: str, deep_bert: Path, data: Path, tmp_path: Path) -> None:
    """Stopped after the third evaluation, it has one left; without a step to learn by, none is better. Stopped while it
    saves its result, it has none."""
    model = deep_bert if stage == "rank_sft" else tiny_llm(tmp_path / "llm")
    flags = ["--model", model, "--data", data, "--held_out", data, "--output_dir", tmp_path / "scorer", *FEW[4:],
             "--max_steps", 50, "--save_steps", 1, "--learning_rate", 0, "--early_stop", 3]  # fmt: skip
    for place in ("checkpoint-4/whole.json", ".partial/training.json"):
        assert finish(stage, *flags, at=place) == -signal.SIGKILL
    assert finish(stage, *flags) == 0
    assert len(json.loads((tmp_path / "scorer/training.json").read_text())["held_out"]) == 4


def test_labels_below_one_choose_the_best_checkpoint(deep_bert: Path, data: Path, tmp_path: Path) -> None:
    """By gains as they are: the same runs as with labels of 0 to 4, whose measures are the same."""
    small = tmp_path / "small.jsonl"
    records = [json.loads(line) for line in data.read_text().splitlines()]
    for document in (document for record in records for document in record["documents"]):
        document["label"] = None if document["label"] is None else document["label"] / 8
    small.write_text("".join(json.dumps(record) + "\n" for record in records))
    steps = ["--max_steps", 6, "--save_steps", 2, "--learning_rate", "0.02"]
    values = [evaluations(deep_bert, each, tmp_path / each.stem, *steps) for each in (data, small)]
    assert values[1] == pytest.approx(values[0], abs=1e-9)
    assert len(set(values[1])) > 1


def test_queries_that_are_trained_on_judge_nothing(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [json.loads(line) for line in data.read_text().splitlines()]
    for record in records[:2]:
        record.update(query_id=f"new {record['query_id']}", query=f" {record['query'].upper()}")
    records[2]["query"] = "another"
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:3]))
    flags = ["--data", data, "--held_out", tmp_path / "held_out.jsonl", "--output_dir", tmp_path / "out"]
    run(rank_sft, "--model", deep_bert, *flags, *FEW)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--held_out" in line]
    example = json.loads(data.read_text().splitlines()[0])["query"]
    assert line == (f"--held_out: 2 of its 3 queries are trained on too, such as {example!r}: they judge nothing")
