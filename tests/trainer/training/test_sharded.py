"""Weights in parts on two processes train as whole ones do, and what is saved is the whole model; signals, too."""

from __future__ import annotations

import json
import signal
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForSequenceClassification, TrainingArguments

from bench.children import free_ports
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests import ROOT
from tests.support.checkpoints import tiny_llm, write_groups, write_uneven_groups
from tests.support.stages import Commands, agent, exit_codes, in_two_processes, measured
from tests.support.waiting import eventually
from trainer import pretrain, rank_sft
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.packed.check import QUERY, SHORT
from trainer.training.resume import drop_broken_checkpoints
from trainer.training.sharded import sharding_of

CONFIGS = ROOT / "examples/accelerate"
TRAINING = ["--logging_steps", "1", "--learning_rate", "5e-4", "--disable_tqdm", "true"]
STEPS = 8  # of a run that is stopped in the middle


@dataclass(frozen=True)
class Material:
    llama: Path
    data: Path
    held_out: Path

    def flags(self, processes: int, output: Path, *more: object) -> list[str]:
        size = ["--per_device_train_batch_size", 8 // processes, *(["--use_cpu", "true"] if processes == 1 else [])]
        own = ["--model", self.llama, "--data", self.data, "--output_dir", output]
        return [str(flag) for flag in (*own, *TRAINING, *size, *more)]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("material")
    held_out = write_uneven_groups(root / "dev.jsonl")
    return Material(tiny_llm(root / "llama"), write_groups(root / "data.jsonl", queries=16), held_out)


def sharded(commands: Commands, log: Path, stop_at: str = "") -> list[int | None]:
    """Stages in two processes, with what ``accelerate launch`` reads of the example for one machine of GPUs."""
    here = launch_arguments("fsdp_8gpu.yaml", "--num_processes", "2", "--mixed_precision", "no")
    return exit_codes(in_two_processes(commands, log, prepare_multi_gpu_env(here), stop_at))


def assert_same_training(one: Path, two: Path, steps: int) -> None:
    curves = [json.loads((path / "training.json").read_text())["loss_curve"] for path in (one, two)]
    expected, losses = ([point["loss"] for point in curve] for curve in curves)
    assert len(losses) == len(expected) == steps
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    weights, parts = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert weights.keys() == parts.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def sharded_runs(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer with adapters and a language model, trained by one process in folder 1 and by two in folder 2.

    Of the scorer, the best of two checkpoints comes back from shards, and steps go in parts, of which the processes
    need different numbers. In the language model's first run one of the two processes gets a signal.
    """
    root = tmp_path_factory.mktemp("runs")
    adapted = ["--max_steps", 4, "--token_budget", 128, "--save_steps", 2, "--lora_rank", 4]
    more = {
        "pretrain": ["--max_steps", STEPS, "--save_steps", STEPS // 2, "--held_out", material.data],
        "rank_sft": [*adapted, "--held_out", material.held_out],
    }
    for stage, module in (("pretrain", pretrain), ("rank_sft", rank_sft)):
        assert module.main(material.flags(1, root / "1" / stage, *more[stage])) == 0
    commands = [[stage, *material.flags(2, root / "2" / stage, *flags)] for stage, flags in more.items()]
    second_shard = f"checkpoint-{STEPS // 2}/pytorch_model_fsdp_0/__1_0.distcp"
    assert sharded(commands, root / "log", stop_at=second_shard) == [128 + signal.SIGTERM] * 2
    checkpoint = drop_broken_checkpoints(root / "2/.pretrain.run")
    assert checkpoint is not None
    assert len(list((checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2
    assert sharded(commands, root / "log") == [0, 0], (root / "log").read_text()[-3000:]
    return root


def test_fsdp_trains_a_scorer_as_one_process_does(material: Material, sharded_runs: Path) -> None:
    one, two = sharded_runs / "1/rank_sft", sharded_runs / "2/rank_sft"
    assert_same_training(one, two, steps=4)
    evaluations = [json.loads((path / "training.json").read_text())["held_out"] for path in (one, two)]
    assert [evaluation["step"] for evaluation in evaluations[1]] == [2, 4]
    expected, seen = ([evaluation["eval_nDCG@10"] for evaluation in path] for path in evaluations)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)  # a rank that changes moves it by far more
    assert measured(two, material.held_out) == pytest.approx(max(seen), abs=1e-9)
    assert type(AutoModelForSequenceClassification.from_pretrained(two)).__name__ == "LlamaForSequenceClassification"
    encoder = PairEncoder.load(two)
    batch = encoder.pack(encoder.encode(QUERY, SHORT))
    scores = [PackedScorer(load_scorer(path)).score(batch) for path in (one, two)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)  # of weights that differ by their last digits


def test_fsdp_resumes_from_its_shards(sharded_runs: Path) -> None:
    """One of two processes got a signal: both stopped, after the same step, and the same command resumed."""
    one, two = sharded_runs / "1/pretrain", sharded_runs / "2/pretrain"
    assert_same_training(one, two, steps=STEPS)
    evaluations = [json.loads((path / "training.json").read_text())["held_out"] for path in (one, two)]
    expected, seen = ([evaluation["eval_loss"] for evaluation in path] for path in evaluations)
    assert len(expected) == 2
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_a_signal_to_the_launcher_leaves_one_whole_checkpoint(material: Material, tmp_path: Path) -> None:
    """torchrun passes SIGTERM on; it may arrive in different steps of the processes."""
    flags = material.flags(2, tmp_path / "out", "--max_steps", 10**6, "--save_steps", 10**6, "--use_cpu", "true")
    log = tmp_path / "log"
    launcher = agent(["rank_sft", *flags], log, free_ports("main")["main"], hosts=1, processes=2)
    eventually((tmp_path / ".out.run/logs").exists)  # it is training
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    launcher.terminate()
    assert exit_codes([launcher]) != [0]
    assert not any(worker.is_running() for worker in workers)
    assert log.read_text().count("stopped by SIGTERM at step") == 2
    checkpoint = drop_broken_checkpoints(tmp_path / ".out.run")
    assert checkpoint is not None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    assert not (tmp_path / "out").exists()


def test_fsdp_without_gpus_is_refused(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accelerate would silently train without."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert rank_sft.main(material.flags(1, tmp_path / "out")) == 2
    assert "error: FSDP was asked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def launch_arguments(name: str, *more: str) -> Namespace:
    """The example as ``accelerate launch`` reads it."""
    command = ["--config_file", str(CONFIGS / name), "--machine_rank", "1", *more, "--module", "trainer.rank_sft"]
    arguments: Namespace = _validate_launch_command(launch_command_parser().parse_args(command))[0]
    return arguments


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_an_example_is_one_that_accelerate_reads(path: Path) -> None:
    """Accelerate itself refuses unknown keys of the file, and passes over those of its sections."""
    config = load_config_from_file(str(path))
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
    arguments = launch_arguments(path.name)
    machines = 2 if "_2x8gpu" in path.stem else 1
    assert (arguments.num_machines, arguments.num_processes) == (machines, 8 * machines)
    assert arguments.mixed_precision == "bf16"
    assert (arguments.use_fsdp, arguments.use_deepspeed) == (path.stem[0] == "f", path.stem[0] == "d")


def test_the_fsdp_examples_shard_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in prepare_multi_gpu_env(launch_arguments("fsdp_8gpu.yaml")).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.activation_checkpointing
    assert plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert sharding_of(TrainingArguments(use_cpu=True)) == "fsdp"


@pytest.mark.parametrize("name", ["deepspeed_8gpu.yaml", "deepspeed_2x8gpu.yaml"])
def test_the_deepspeed_examples_share_gradients_and_moments(name: str) -> None:
    arguments = launch_arguments(name)
    arguments.deepspeed_fields_from_accelerate_config = ""  # the launcher sets it
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_both_examples_of_a_kind_differ_in_the_machines_only() -> None:
    for kind in ("fsdp", "deepspeed"):
        one, two = (vars(load_config_from_file(str(CONFIGS / f"{kind}_{size}.yaml"))) for size in ("8gpu", "2x8gpu"))
        apart = {"num_machines", "num_processes", "main_process_ip", "main_process_port", "deepspeed_config"}
        assert {name for name in one if one[name] != two[name]} <= apart
