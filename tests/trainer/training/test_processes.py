"""Two processes train as one does with all of the step's queries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import ROOT
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from tests.support.servers import ports
from trainer import distill, pretrain, rank_sft, score
from trainer.data.rankings import write_scores
from trainer.data.records import read_groups

STAGES = {"pretrain": pretrain, "rank_sft": rank_sft, "distill": distill, "score": score}
SAME = ["--logging_steps", "1", "--learning_rate", "2e-3", "--use_cpu", "true", "--disable_tqdm", "true",
        "--save_strategy", "no"]  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each stage what it trains on; no dropout, which each process would draw for itself."""
    root = tmp_path_factory.mktemp("material")
    data, scores = write_groups(root / "data.jsonl", queries=16), root / "scores.parquet"
    pairs = [(group.query_id, document.doc_id) for group in read_groups(data) for document in group.documents]
    write_scores(scores, [(*pair, float(number % 7)) for number, pair in enumerate(pairs)], teacher="t")
    llama, bert = tiny_llama(root / "llama"), tiny_bert(root / "bert")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModelForSequenceClassification.from_pretrained(bert, **still).save_pretrained(bert)
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama)
    return {
        "pretrain": ["--model", str(llama), "--data", str(data), "--shuffle_buffer", "6"],
        "rank_sft": ["--model", str(llama), "--data", str(data), "--objective", "lambda_rank", "--token_budget", "128"],
        "distill": ["--model", str(bert), "--data", str(data), "--scores", str(scores), "--label_weight", "0.3"],
    }


def launch(stage: str, processes: int, *flags: str) -> None:
    if processes == 1:
        assert STAGES[stage].main(flags) == 0
        return
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={ports()['http']}"]
    command = [sys.executable, *launcher, "-m", f"trainer.{stage}", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("stage", ["pretrain", "rank_sft", "distill"])
def test_two_processes_train_as_one_does(stage: str, material: dict[str, list[str]], tmp_path: Path) -> None:
    for processes in (1, 2):
        size = ["--per_device_train_batch_size", str(8 // processes), "--max_steps", "8"]
        launch(stage, processes, *SAME, *material[stage], *size, "--output_dir", str(tmp_path / str(processes)))
    one, two = (json.loads((tmp_path / name / "training.json").read_text())["loss_curve"] for name in "12")
    assert len(one) == len(two) == 8
    np.testing.assert_allclose([point["loss"] for point in two], [point["loss"] for point in one], rtol=1e-5)


def test_an_uneven_last_batch_does_not_hang(material: dict[str, list[str]], tmp_path: Path) -> None:
    """16 queries, 3 a process and step: in the last step of an epoch one process has fewer."""
    size = ["--per_device_train_batch_size", "3", "--num_train_epochs", "2"]
    launch("distill", 2, *SAME, *material["distill"], *size, "--output_dir", str(tmp_path / "out"))
    curve = json.loads((tmp_path / "out/training.json").read_text())["loss_curve"]
    assert len(curve) == 6
    assert np.isfinite([point["loss"] for point in curve]).all()


def test_two_processes_score_every_pair_once(material: dict[str, list[str]], tmp_path: Path) -> None:
    teacher, data = tiny_bert(tmp_path / "teacher"), write_groups(tmp_path / "pool.jsonl", queries=20)
    for processes in (1, 2):
        flags = ["--model", str(teacher), "--data", str(data), "--pairs_per_shard", "12"]
        launch("score", processes, *flags, "--output", str(tmp_path / f"{processes}.parquet"))
    one, two = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in "12")
    assert all(one[column] == two[column] for column in ("query_id", "doc_id"))
    np.testing.assert_allclose(two["score"], one["score"], atol=1e-5)
