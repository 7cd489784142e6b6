"""Runs that are stopped at any moment and started again end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from tests.support.stages import SERVER, finish, started
from trainer import distill, rank_sft, score
from trainer.data.rankings import write_scores
from trainer.data.records import read_groups
from trainer.training.resume import WHOLE_FILE, differences, newest_whole

STEPS = 40
SHORT = ["--max_steps", STEPS, "--save_steps", 3, "--per_device_train_batch_size", 2, "--learning_rate", 1e-3,
         "--logging_steps", 1, "--disable_tqdm", "true"]  # fmt: skip
KILLS = 7  # of each stage


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """For each stage what it trains on."""
    root = tmp_path_factory.mktemp("material")
    data = write_groups(root / "data.jsonl", queries=9)
    scores = root / "scores.parquet"
    pairs = [(group.query_id, document.doc_id) for group in read_groups(data) for document in group.documents]
    write_scores(scores, [(*pair, float(number % 7)) for number, pair in enumerate(pairs)], teacher="t")
    llama, bert = tiny_llama(root / "llama"), tiny_bert(root / "bert")
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama)  # the scorer's body with a fresh head
    return {
        "pretrain": ["--model", llama, "--data", data, "--shuffle_buffer", 4],
        "rank_sft": ["--model", llama, "--data", data, "--lora_rank", 4, "--lora_dropout", 0.1, "--held_out", data],
        "distill": ["--model", bert, "--data", data, "--scores", scores, "--documents_per_query", 4],
    }


def result(directory: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The weights and the loss curve of a run that is done."""
    assert not list(directory.parent.glob(f".{directory.name}.*"))
    return load_file(directory / "model.safetensors"), json.loads((directory / "training.json").read_text())[
        "loss_curve"
    ]


@pytest.mark.parametrize("stage", ["pretrain", "rank_sft", "distill"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    stage: str, material: dict[str, list[object]], tmp_path: Path
) -> None:
    flags = [*material[stage], *SHORT]
    warm = SERVER.Process(target=len, args=((),))
    warm.start()
    warm.join()
    before = time.monotonic()
    assert finish(stage, *flags, "--output_dir", tmp_path / "whole") == 0
    duration = time.monotonic() - before
    draw = random.Random(stage)
    kills = 0
    while kills < KILLS:
        process = started(stage, *flags, "--output_dir", tmp_path / "killed")
        process.join(draw.uniform(0.2, 0.9) * duration)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if (tmp_path / "killed").exists():  # all but done: begin anew
            assert_equal(tmp_path / "killed", tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    assert finish(stage, *flags, "--output_dir", tmp_path / "killed") == 0
    assert_equal(tmp_path / "killed", tmp_path / "whole")


def assert_equal(left: Path, right: Path) -> None:
    (weights, curve), (expected, whole_curve) = result(left), result(right)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [(point["step"], point["loss"]) for point in curve] == [
        (point["step"], point["loss"]) for point in whole_curve
    ]
    assert len(curve) == STEPS


def test_a_signal_leaves_a_checkpoint_and_the_curve_goes_on(material: dict[str, list[object]], tmp_path: Path) -> None:
    """Points of the curve span several steps, and the signal falls between two of them."""
    flags = [*material["distill"], *SHORT, "--logging_steps", 7, "--save_steps", 1000]
    assert finish("distill", *flags, "--output_dir", tmp_path / "whole") == 0
    process = started("distill", *flags, "--output_dir", tmp_path / "stopped")
    logs = tmp_path / ".stopped.run" / "logs"
    while not logs.exists():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    checkpoint = newest_whole(tmp_path / ".stopped.run")
    assert checkpoint is not None
    assert not (tmp_path / "stopped").exists()
    assert finish("distill", *flags, "--output_dir", tmp_path / "stopped") == 0
    (weights, curve), (expected, whole_curve) = result(tmp_path / "stopped"), result(tmp_path / "whole")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [point["loss"] for point in curve] == [point["loss"] for point in whole_curve]


def interrupted(material: dict[str, list[object]], root: Path, *more: object) -> Path:
    """The directory of a run with two whole checkpoints that was then cut off."""
    process = started("distill", *material["distill"], *SHORT, *more, "--output_dir", root / "out")
    directory = root / ".out.run"
    while not (directory / "checkpoint-6" / WHOLE_FILE).exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    return directory


def test_changed_settings_are_refused_and_listed(
    material: dict[str, list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(material, tmp_path)
    flags = [*material["distill"], *SHORT, "--learning_rate", 5e-4, "--margin_weight", 2, "--logging_steps", 5]
    assert distill.main([str(flag) for flag in (*flags, "--output_dir", tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "an interrupted run with other settings (margin_weight: 1.0 -> 2.0; learning_rate: 0.001 -> 0.0005)" in error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_cut_off_is_passed_over(material: dict[str, list[object]], tmp_path: Path) -> None:
    directory = interrupted(material, tmp_path)
    newest = newest_whole(directory)
    assert newest is not None
    (newest / WHOLE_FILE).unlink()
    older = newest_whole(directory)
    assert older is not None
    assert int(older.name.split("-")[1]) < int(newest.name.split("-")[1])
    assert not newest.exists()


def test_other_data_under_the_same_name_are_refused(
    material: dict[str, list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--held_out", write_groups(tmp_path / "dev.jsonl", queries=2)]
    interrupted(material, tmp_path, *held_out)
    write_groups(tmp_path / "dev.jsonl", queries=3)
    flags = [*material["distill"], *SHORT, *held_out, "--output_dir", tmp_path / "out"]
    assert distill.main([str(flag) for flag in flags]) == 2
    assert "dev.jsonl: " in capsys.readouterr().err


def test_checkpoints_of_adapters_do_not_hold_what_is_frozen(material: dict[str, list[object]], tmp_path: Path) -> None:
    process = started("rank_sft", *material["rank_sft"], *SHORT, "--output_dir", tmp_path / "out")
    first = tmp_path / ".out.run" / "checkpoint-3"
    while not (first / WHOLE_FILE).exists():
        time.sleep(0.001)
    names = load_file(first / "model.safetensors").keys()
    process.kill()
    process.join()
    assert {"lora_" in name or name == "score.weight" for name in names} == {True}
    assert len(names) == 1 + 2 * 7 * 2  # the head, two matrices beside each of seven in two layers


def test_what_changes_no_weight_may_change() -> None:
    before = {"training": {"logging_steps": 1, "seed": 0}, "arguments": {"data": ["a"]}}
    now = {"training": {"logging_steps": 9, "seed": 1}, "arguments": {"data": ["a", "b"]}}
    assert differences(before, now) == ["data: ['a'] -> ['a', 'b']", "seed: 0 -> 1"]


def test_when_checkpoints_are_made_counts_where_the_best_of_them_wins(
    material: dict[str, list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--held_out", material["distill"][3]]
    interrupted(material, tmp_path, *held_out)
    flags = [*material["distill"], *SHORT, *held_out, "--output_dir", tmp_path / "out", "--save_steps", 7]
    assert distill.main([str(flag) for flag in flags]) == 2
    assert "other settings (save_steps: 3 -> 7" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_queries(
    material: dict[str, list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*material["rank_sft"], *SHORT, "--learning_rate", 1e38, "--warmup_steps", 0, "--max_grad_norm", 0]
    assert rank_sft.main([str(flag) for flag in (*flags, "--output_dir", tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "error: the loss is nan after" in error
    assert "the queries of this step: q" in error
    assert not (tmp_path / "out").exists()


def test_relabelling_that_is_killed_scores_every_pair_once(material: dict[str, list[object]], tmp_path: Path) -> None:
    """After each shard that is done: the next start goes on behind it."""
    teacher, data = tiny_bert(tmp_path / "teacher"), write_groups(tmp_path / "pool.jsonl", queries=60)
    flags = ["--model", teacher, "--data", data, "--pairs_per_shard", 12, "--rows_per_batch", 1]
    assert finish("score", *flags, "--output", tmp_path / "whole.parquet") == 0
    shards, seen = tmp_path / ".killed.parquet.shards", 0
    while seen < 20 and not (tmp_path / "killed.parquet").exists():
        process = started("score", *flags, "--output", tmp_path / "killed.parquet")
        while len(list(shards.glob("0*.parquet"))) < seen + 7 and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        seen = len(list(shards.glob("0*.parquet")))
    assert finish("score", *flags, "--output", tmp_path / "killed.parquet") == 0
    tables = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert len(tables[0]) == sum(len(group.documents) for group in read_groups(data))
    assert not shards.exists()


def test_shards_of_another_teacher_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, data = tiny_bert(tmp_path / "teacher"), write_groups(tmp_path / "pool.jsonl", queries=200)
    flags = ["--model", teacher, "--data", data, "--pairs_per_shard", 6, "--output", tmp_path / "scores.parquet"]
    process = started("score", *flags)
    while not list((tmp_path / ".scores.parquet.shards").glob("0*.parquet")):
        time.sleep(0.001)
    process.kill()
    process.join()
    shutil.rmtree(teacher)
    tiny_bert(teacher, seed=1)
    assert score.main([str(flag) for flag in flags]) == 2
    assert "an interrupted run with other settings" in capsys.readouterr().err
