"""Two processes train as one does with all of the step's queries, and score as one does."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification

from bench.children import free_ports
from tests.support.checkpoints import (
    tiny_bert,
    tiny_llm,
    write_candidates,
    write_groups,
    write_teacher,
    write_uneven_groups,
)
from tests.support.rerankers import tiny_late
from tests.support.stages import exit_codes, finish, host, in_two_processes, measured
from tests.support.waiting import eventually

SAME = ["--logging_steps", "1", "--learning_rate", "2e-3", "--disable_tqdm", "true",
        "--save_strategy", "no"]  # fmt: skip
STAGES = ("pretrain", "rank_sft", "distill")
SCORED = {"evaluate": "table.json", "rerank": "reranked.run", "score": "score.parquet"}


def commands(material: dict[str, list[str]], processes: int, output: Path) -> list[list[str]]:
    """The commands that score, and every stage with the same queries in a step for any number of processes."""
    size = ["--per_device_train_batch_size", str(8 // processes), "--max_steps", "8"]
    return [
        *([name, *material[name], "--output", str(output / file)] for name, file in SCORED.items()),
        *([stage, *SAME, *material[stage], *size, "--output_dir", str(output / stage)] for stage in STAGES),
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process in folder 1, of two in folder 2; no dropout: each process would draw its own."""
    root = tmp_path_factory.mktemp("processes")
    data = write_groups(root / "data.jsonl", queries=20, weights=(1.0, 3.0, 0.5, 0.0, 2.0))
    more = write_groups(root / "more.jsonl", queries=8, seed=1, name="more")
    scores = write_teacher(root / "scores.parquet", data)
    llama, bert = tiny_llm(root / "llama"), tiny_bert(root / "bert")
    dev = write_uneven_groups(root / "dev.jsonl")
    judging = ["--held_out", str(dev), "--save_strategy", "steps", "--save_steps", "2", "--token_budget", "128"]
    candidates = ["--run", str(write_candidates(root / "first.run", dev)), "--depth", "4", "--rows_per_batch", "1"]
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModelForSequenceClassification.from_pretrained(bert, **still).save_pretrained(bert)
    material = {
        "pretrain": ["--model", str(llama), "--data", str(data), str(more), "--mix", "3", "1", "--shuffle_buffer", "6",
                     "--held_out", str(more), "--save_strategy", "steps", "--save_steps", "3",
                     "--per_device_eval_batch_size", "3"],
        "rank_sft": ["--model", str(llama), "--data", str(data), str(more), "--mix", "3", "1",
                     "--objective", "lambda_rank", *judging],
        "distill": ["--model", str(bert), "--data", str(data), "--scores", str(scores), "--label_weight", "0.3",
                    "--fit_head", "true"],
        "score": ["--model", str(bert), "--data", str(data), "--pairs_per_shard", "12"],
        "rerank": ["--model", str(bert), "--data", str(dev), *candidates],
        "evaluate": ["--data", str(dev), "--systems", str(bert), "random", "--rows_per_batch", "1"],
    }  # fmt: skip
    for command, *flags in commands(material, 1, root / "1"):
        assert finish(command, *flags) == 0
    # 16 queries, 3 for each process and step: in the last step of an epoch one process has fewer. Another kind of head,
    # since processes wait for the gradient of every weight that a model has.
    uneven = ["--per_device_train_batch_size", "3", "--num_train_epochs", "2", "--output_dir", str(root / "uneven"),
              "--model", str(tiny_late(root / "late")), "--student_layers", "1", "--fit_head", "false"]  # fmt: skip
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


def test_a_host_that_is_lost_and_comes_back_leaves_the_curve_of_one_process(results: Path) -> None:
    """It dies as it writes its part of the second checkpoint; both then resume from the first one."""
    material = ["--model", results / "bert", "--data", results / "data.jsonl", "--scores", results / "scores.parquet"]
    size = ["--per_device_train_batch_size", 4, "--max_steps", 8, "--save_steps", 3]
    loss = ["--label_weight", 0.3, "--fit_head", "true"]
    flags = [*SAME[:-2], *material, *size, *loss, "--output_dir", results / "hosts"]
    port, log = free_ports("hosts")["hosts"], results / "hosts.log"
    stays = host(flags, log, port)
    eventually(lambda: listens(port))  # it keeps the list of hosts, and the other one does not
    lost = host(flags, log, port, lost_at="checkpoint-6")
    assert exit_codes([lost]) == [-signal.SIGKILL], log.read_text()[-3000:]
    assert exit_codes([stays, host(flags, log, port)]) == [0, 0], log.read_text()[-3000:]
    np.testing.assert_allclose(points(results / "hosts"), points(results / "1/distill"), rtol=1e-5)
    assert "resumes from checkpoint 3" in log.read_text()


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


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


def test_two_processes_rerank_and_evaluate_as_one_does(results: Path) -> None:
    """To the last digit, since the same pairs share a row."""
    one, two = ((results / name / "reranked.run").read_text() for name in "12")
    assert two == one
    assert len(one.splitlines()) == 60 + 8 * 5
    rows = [json.loads((results / name / "table.json").read_text()) for name in "12"]
    assert all(row.pop("documents_per_second") > 0 for table in rows for row in table)
    assert rows[1] == rows[0]


def test_two_processes_judge_held_out_queries_as_one_does(results: Path) -> None:
    curves = [json.loads((results / name / "rank_sft/training.json").read_text())["held_out"] for name in "12"]
    one, two = ([point["eval_nDCG@10"] for point in curve] for curve in curves)
    assert len(one) == len(two) == 4
    np.testing.assert_allclose(two, one, rtol=1e-6)  # a rank that changes moves it by far more
    assert measured(results / "2/rank_sft", results / "dev.jsonl") == pytest.approx(max(two), abs=1e-9)
