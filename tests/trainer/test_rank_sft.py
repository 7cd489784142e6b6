"""The targets of rank fine-tuning, and its losses, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.records import GROUP, written
from tests.support.stages import FEW, LEARNING, fails, learnt, run
from trainer import rank_sft
from trainer.data.records import read_groups
from trainer.rank_sft import JudgedTargets


@pytest.mark.parametrize(
    "objective",
    [
        "pairwise_logistic", "pairwise_hinge", "lambda_rank", "listwise_softmax", "list_mle", "localized_contrastive",
        "binary_cross_entropy",
    ],
)  # fmt: skip
def test_every_rank_objective_learns(deep_bert: Path, data: Path, tmp_path: Path, objective: str) -> None:
    gaps = ["--gap_weights", "true"] if objective == "pairwise_hinge" else []
    flags = ["--model", deep_bert, "--data", data, "--output_dir", tmp_path / "scorer", "--objective", objective]
    run(rank_sft, *flags, *LEARNING, *gaps)
    assert learnt(tmp_path / "scorer")


def test_gap_weights_of_a_listwise_objective_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "x", "--data", data, "--output_dir", "out", "--objective", "lambda_rank"]
    error = fails(rank_sft, capsys, *flags, "--gap_weights", "true")
    assert "--gap_weights is for the pairwise objectives, not for lambda_rank" in error


def test_the_same_text_with_two_labels_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [{"doc_id": name, "title": "t", "summary": "s", "label": label} for name, label in (("a", 0), ("b", 3))]
    judged = JudgedTargets()
    (group,) = read_groups(written(tmp_path / "a.jsonl", {**GROUP, "documents": same}))
    assert judged(group) is not None
    judged.report()
    expected = "1 texts have two labels, the first are documents 'a' (0) and 'b' (3) of query 'q1'"
    assert expected in capsys.readouterr().err


def test_a_run_that_compares_nothing_is_an_error(
    deep_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels of a different kind: spam and nothing, of which none is a positive."""
    spam = [{"doc_id": name, "title": name, "label": label} for name, label in (("a", 0), ("b", -2))]
    data = written(tmp_path / "a.jsonl", {**GROUP, "documents": spam})
    flags = ["--model", deep_bert, "--data", data, "--output_dir", tmp_path / "out", *FEW]
    assert "found no documents to compare in any query" in fails(
        rank_sft, capsys, *flags, "--objective", "localized_contrastive"
    )
    assert not (tmp_path / "out").exists()
    run(rank_sft, *flags)
    curve = json.loads((tmp_path / "out/training.json").read_text())["loss_curve"]
    assert {point["queries_compared"] for point in curve} == {1.0}


def test_a_run_without_a_step_leaves_no_checkpoint(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", deep_bert, "--data", data, "--output_dir", tmp_path / "out", "--disable_tqdm", "true"]
    for none in (["--num_train_epochs", 0], ["--per_device_train_batch_size", 99, "--dataloader_drop_last", "true"]):
        assert "nothing was trained" in fails(rank_sft, capsys, *flags, *none)
        assert not (tmp_path / "out").exists()
