"""Runs that are stopped at any moment and started again end as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from tests.support.checkpoints import tiny_bert, tiny_llm, write_groups, write_teacher
from tests.support.stages import fails, finish, started, status_of
from trainer import distill, rank_sft, score
from trainer.data.records import DataError, read_groups
from trainer.training.flags import FREE
from trainer.training.resume import WHOLE_FILE, differences, drop_broken_checkpoints
from trainer.training.run import StageArguments
from trainer.training.trainers import Compared

STEPS = 12
Material = dict[str, list[object]]
SHORT = ["--max_steps", STEPS, "--save_steps", 3, "--per_device_train_batch_size", 2, "--learning_rate", 1e-3,
         "--logging_steps", 1, "--disable_tqdm", "true"]  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """For each stage what it trains on."""
    root = tmp_path_factory.mktemp("material")
    data = write_groups(root / "data.jsonl", queries=9)
    scores = write_teacher(root / "scores.parquet", data)
    llama, bert = tiny_llm(root / "llama"), tiny_bert(root / "bert")
    more = write_groups(root / "more.jsonl", queries=5, name="more", weights=(1.0, 0.5))
    mixed = ["--data", data, more, "--mix", 1, 3, "--shuffle_buffer", 4, "--held_out", more]
    return {
        "pretrain": ["--model", llama, *mixed],
        "rank_sft": [
            "--model",
            llama,
            "--data",
            data,
            "--lora_rank",
            4,
            "--lora_dropout",
            0.1,
            "--bf16",
            "true",
            "--held_out",
            data,
        ],
        "distill": ["--model", bert, "--data", data, "--scores", scores, "--documents_per_query", 4],
    }


def result(directory: Path) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """The weights and the loss curve of a run that is done."""
    assert not list(directory.parent.glob(f".{directory.name}.*"))
    curve = json.loads((directory / "training.json").read_text())["loss_curve"]
    return load_file(directory / "model.safetensors"), [(point["step"], point["loss"]) for point in curve]


# Each kill, in order: a checkpoint half written, written and not yet marked as whole, the oldest about to be removed,
# and a result half written, then whole and not yet renamed.
HALF, UNMARKED, ROTATED = "checkpoint-3/trainer_state.json", "checkpoint-6/whole.json", "checkpoint-3"
RESULT = (".partial/training.json", "/killed")
KILLS = {"pretrain": [UNMARKED], "rank_sft": [HALF, ROTATED, *RESULT], "distill": [UNMARKED]}


@pytest.mark.parametrize("stage", KILLS)
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    stage: str, material: Material, tmp_path: Path
) -> None:
    flags = [*material[stage], *SHORT]
    assert finish(stage, *flags, "--output_dir", tmp_path / "whole") == 0
    for place in KILLS[stage]:
        assert finish(stage, *flags, "--output_dir", tmp_path / "killed", at=place) == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    assert finish(stage, *flags, "--output_dir", tmp_path / "killed") == 0
    assert_equal(tmp_path / "killed", tmp_path / "whole", STEPS)


def assert_equal(left: Path, right: Path, points: int) -> None:
    (weights, curve), (expected, whole_curve) = result(left), result(right)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert curve == whole_curve
    assert len(curve) == points


def test_a_signal_leaves_a_checkpoint_and_the_curve_continues(material: Material, tmp_path: Path) -> None:
    """Points of the curve span several steps, and the signal falls between two of them."""
    flags = [*material["distill"], *SHORT, "--logging_steps", 4]
    assert finish("distill", *flags, "--output_dir", tmp_path / "whole") == 0
    stopped = [*flags, "--output_dir", tmp_path / "stopped"]
    code = finish("distill", *stopped, at="checkpoint-6/whole.json", send=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    checkpoint = drop_broken_checkpoints(tmp_path / ".stopped.run")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-7"
    assert not (tmp_path / "stopped").exists()
    assert finish("distill", *stopped) == 0
    assert_equal(tmp_path / "stopped", tmp_path / "whole", STEPS // 4)


@pytest.fixture(scope="module")
def interrupted(material: Material, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The flags of a run that was cut off behind two whole checkpoints; held-out queries are its last."""
    root = tmp_path_factory.mktemp("interrupted")
    held_out = write_groups(root / "dev.jsonl", queries=2)
    flags = [*material["distill"], *SHORT, "--output_dir", root / "out", "--held_out", held_out]
    assert finish("distill", *flags, at="checkpoint-9/trainer_state.json") == -signal.SIGKILL
    return flags


def test_changed_settings_are_refused_and_listed(interrupted: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    """Other data under the same name too, and when checkpoints are made, since the best of them wins."""
    held_out = Path(str(interrupted[-1]))
    os.utime(held_out)
    more = ["--learning_rate", 5e-4, "--margin_weight", 2, "--logging_steps", 5, "--save_steps", 7]
    error = fails(distill, capsys, *interrupted, *more)
    assert "an interrupted run with other settings (margin_weight: 1.0 -> 2.0; " in error
    assert f"; {held_out}: " in error
    assert "; learning_rate: 0.001 -> 0.0005; save_steps: 3 -> 7): " in error


def test_a_checkpoint_that_was_cut_off_is_dropped(interrupted: list[object], tmp_path: Path) -> None:
    output = Path(str(interrupted[interrupted.index("--output_dir") + 1]))
    directory = shutil.copytree(output.with_name(".out.run"), tmp_path / "run")
    assert drop_broken_checkpoints(directory) == directory / "checkpoint-6"
    assert not (directory / "checkpoint-9").exists()
    (directory / "checkpoint-6" / WHOLE_FILE).unlink()
    assert drop_broken_checkpoints(directory) == directory / "checkpoint-3"
    assert not (directory / "checkpoint-6").exists()
    (directory / "checkpoint-best").mkdir()
    assert drop_broken_checkpoints(directory) == directory / "checkpoint-3"
    assert (directory / "checkpoint-best").exists()


def test_checkpoints_of_adapters_do_not_hold_what_is_frozen(material: Material, tmp_path: Path) -> None:
    flags = [*material["rank_sft"], *SHORT, "--output_dir", tmp_path / "out"]
    assert finish("rank_sft", *flags, at="checkpoint-3/whole.json") == -signal.SIGKILL
    names = load_file(tmp_path / ".out.run/checkpoint-3/model.safetensors").keys()
    assert {"lora_" in name or name == "score.weight" for name in names} == {True}
    assert len(names) == 1 + 2 * 7 * 2  # the head, two matrices beside each of seven in two layers


def test_what_changes_no_weight_may_change() -> None:
    before = {"training": {"logging_steps": 1, "seed": 0}, "arguments": {"data": ["a"]}, "processes": 2}
    now = {"training": {"logging_steps": 9, "seed": 1}, "arguments": {"data": ["a", "b"]}, "processes": 4}
    assert differences(before, now, FREE) == ["data: ['a'] -> ['a', 'b']", "processes: 2 -> 4", "seed: 0 -> 1"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_queries(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*material["rank_sft"], *SHORT, "--learning_rate", 1e38, "--warmup_steps", 0, "--max_grad_norm", 0]
    assert rank_sft.main([str(flag) for flag in (*flags, "--output_dir", tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "error: the loss is nan after" in error
    assert "the queries of this step: q" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("epoch", "refused"), [(0.0, True), (0.5, False)])
def test_only_an_epoch_that_was_seen_from_its_start_must_have_compared_documents(epoch: float, refused: bool) -> None:
    """A run that resumes at its last step would else be refused for a query of one document."""
    compared, training = Compared(), StageArguments(output_dir="out", use_cpu=True)
    compared.on_epoch_begin(training, TrainerState(epoch=epoch))
    compared.add(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(DataError, match="no documents to compare") if refused else nullcontext():
        compared.on_epoch_end(training)


def test_relabelling_that_is_killed_scores_every_pair_once(material: Material, tmp_path: Path) -> None:
    """Killed before the first shard is whole, before a later one is, and before the result is; shards change size."""
    teacher, data = tiny_bert(tmp_path / "teacher"), write_groups(tmp_path / "pool.jsonl", queries=20)
    flags = ["--model", teacher, "--data", data, "--rows_per_batch", 1]
    assert finish("score", *flags, "--output", tmp_path / "whole.parquet") == 0
    shards = tmp_path / ".killed.parquet.shards"
    for place, pairs, whole in (("000-000000002.parquet", 12, 0), ("012-000000014.parquet", 12, 6),
                                ("/killed.parquet", 30, 8)):  # fmt: skip
        again = [*flags, "--pairs_per_shard", pairs, "--output", tmp_path / "killed.parquet"]
        assert finish("score", *again, at=place) == -signal.SIGKILL
        assert len(list(shards.glob("0*.parquet"))) == whole
    assert finish("score", *again) == 0
    tables = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert len(tables[0]) == sum(len(group.documents) for group in read_groups(data))
    assert not shards.exists()


def test_shards_of_another_teacher_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, data = tiny_bert(tmp_path / "teacher"), write_groups(tmp_path / "pool.jsonl", queries=20)
    flags = ["--model", teacher, "--data", data, "--pairs_per_shard", 6, "--output", tmp_path / "scores.parquet"]
    assert finish("score", *flags, at="-000000002.parquet") == -signal.SIGKILL
    shutil.rmtree(teacher)
    tiny_bert(teacher, seed=1)
    assert "an interrupted run with other settings" in fails(score, capsys, *flags)


@pytest.mark.parametrize("stage", ["distill", "score"])
def test_two_commands_with_one_output_do_not_meet(stage: str, material: Material, tmp_path: Path) -> None:
    """The second is refused while the first, which stands still, has its directory, and finishes its work after it."""
    output, directory = tmp_path / "out", tmp_path / (".out.run" if stage == "distill" else ".out.shards")
    if stage == "distill":
        flags, place = [*material["distill"], *SHORT, "--output_dir", output], "checkpoint-6/whole.json"
    else:
        data = material["distill"][3]
        flags, place = ["--model", material["distill"][1], "--data", data, "--output", output], ".parquet"
    first = started(stage, *flags, at=place, send=signal.SIGSTOP)
    try:
        while status_of(first.pid) != "T":
            assert first.exitcode is None
            time.sleep(0.05)
        assert finish(stage, *flags, log=tmp_path / "log") == 2
        message = rf"error: .*{directory.name}: process {first.pid} on \S+ works in it: wait for its end"
        assert re.search(message, (tmp_path / "log").read_text())
        assert (directory / "settings.json").exists()
    finally:
        os.kill(int(first.pid or 0), signal.SIGKILL)
        first.join()
    assert finish(stage, *flags) == 0
    assert output.exists()
    assert not directory.exists()
