"""Two processes train as one does with all of the step's queries."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification

from tests.support.checkpoints import tiny_bert, tiny_llm, write_groups, write_teacher
from tests.support.stages import exit_codes, in_two_processes

SAME = ["--logging_steps", "1", "--learning_rate", "2e-3", "--use_cpu", "true", "--disable_tqdm", "true",
        "--save_strategy", "no"]  # fmt: skip
STAGES = ("pretrain", "rank_sft", "distill")


def commands(material: dict[str, list[str]], processes: int, output: Path) -> list[list[str]]:
    """Every stage and relabelling, with the same queries in a step for any number of processes."""
    size = ["--per_device_train_batch_size", str(8 // processes), "--max_steps", "8"]
    stages = [[stage, *SAME, *material[stage], *size, "--output_dir", str(output / stage)] for stage in STAGES]
    return [*stages, ["score", *material["score"], "--output", str(output / "score.parquet")]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process in folder 1, of two in folder 2; no dropout: each process would draw its own."""
    root = tmp_path_factory.mktemp("processes")
    data = write_groups(root / "data.jsonl", queries=20, weights=(1.0, 3.0, 0.5, 0.0, 2.0))
    more = write_groups(root / "more.jsonl", queries=8, seed=1, name="more")
    scores = write_teacher(root / "scores.parquet", data)
    llama, bert = tiny_llm(root / "llama"), tiny_bert(root / "bert")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModelForSequenceClassification.from_pretrained(bert, **still).save_pretrained(bert)
    material = {
        "pretrain": ["--model", str(llama), "--data", str(data), str(more), "--mix", "3", "1", "--shuffle_buffer", "6",
                     "--held_out", str(more), "--save_strategy", "steps", "--save_steps", "3",
                     "--per_device_eval_batch_size", "3"],
        "rank_sft": ["--model", str(llama), "--data", str(data), str(more), "--mix", "3", "1",
                     "--objective", "lambda_rank", "--token_budget", "128"],
        "distill": ["--model", str(bert), "--data", str(data), "--scores", str(scores), "--label_weight", "0.3"],
        "score": ["--model", str(bert), "--data", str(data), "--pairs_per_shard", "12"],
    }  # fmt: skip
    for command, *flags in commands(material, 1, root / "1"):
        assert importlib.import_module(f"trainer.{command}").main(flags) == 0
    # 16 queries, 3 for each process and step: in the last step of an epoch one process has fewer.
    uneven = ["--per_device_train_batch_size", "3", "--num_train_epochs", "2", "--output_dir", str(root / "uneven")]
    together = [*commands(material, 2, root / "2"), ["distill", *SAME, *material["distill"], *uneven]]
    assert exit_codes(in_two_processes(together, root / "log")) == [0, 0], (root / "log").read_text()[-3000:]
    return root


def points(checkpoint: Path, curve: str = "loss_curve", value: str = "loss") -> list[float]:
    return [point[value] for point in json.loads((checkpoint / "training.json").read_text())[curve]]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one_does(stage: str, results: Path) -> None:
    one, two = (points(results / name / stage) for name in "12")
    assert len(one) == len(two) == 8
    np.testing.assert_allclose(two, one, rtol=1e-5)  # sums of float32 in another order


def test_two_processes_share_out_the_held_out_queries(results: Path) -> None:
    """In three batches: in the second round one process has none."""
    one, two = (points(results / name / "pretrain", "held_out", "eval_loss") for name in "12")
    assert len(one) == 3
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_an_uneven_last_batch_does_not_hang(results: Path) -> None:
    curve = points(results / "uneven")
    assert len(curve) == 6
    assert np.isfinite(curve).all()


def test_two_processes_score_every_pair_once(results: Path) -> None:
    one, two = (pq.read_table(results / f"{name}/score.parquet").to_pydict() for name in "12")
    assert all(one[column] == two[column] for column in ("query_id", "doc_id"))
    np.testing.assert_allclose(two["score"], one["score"], atol=1e-5)  # rows are packed with others
