from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
)

from bench.children import free_ports
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import SMALL
from tests.support.stages import FEW, fails
from trainer import init, pretrain, rank_sft, score
from trainer.checkpoints.load import CheckpointError, check_packing, load_causal_lm, load_for_training, load_scorer
from trainer.measures.costs import read_shape
from trainer.packed.heads import pools_all_tokens


def test_checkpoints_of_the_wrong_kind_are_named(tmp_path: Path, bert: Path, llama: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_scorer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"not a checkpoint \(it has no config.json\)"):
        load_scorer(tmp_path)
    with pytest.raises(CheckpointError, match="not a causal LM checkpoint"):
        load_causal_lm(llama)
    with pytest.raises(CheckpointError, match="not a causal LM checkpoint"):
        load_causal_lm(bert)


def test_a_causal_lm_is_no_scorer_until_it_is_trained(tmp_path: Path, llama: Path) -> None:
    directory = shutil.copytree(llama, tmp_path / "lm")
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(directory)
    with pytest.raises(CheckpointError, match=r"no 'score.weight': it is not a trained scorer"):
        load_scorer(directory)
    assert load_for_training(directory).config.num_labels == 1


@pytest.mark.parametrize(("family", "other"), [("modernbert", "mean"), ("eurobert", "late")])
def test_a_new_head_reads_the_first_token(family: str, other: str, tmp_path: Path, bert: Path) -> None:
    """Base models of the hub are published with another pooling in their configuration."""
    control = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 3)
    config = AutoConfig.for_model(family, **SMALL, **control, num_key_value_heads=4, classifier_pooling=other)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    check_packing(load_for_training(tmp_path), PairEncoder.load(bert), family)
    assert not pools_all_tokens(load_for_training(tmp_path))


CODE = {
    "AutoConfig": "own.Config",
    "AutoModelForSequenceClassification": "own.Model",
    "AutoModelForCausalLM": "own.Model",
}


BREAK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"", "cut": lambda data: data[: len(data) // 2], "no text": lambda data: b"\x00\xffno",
    "a list": lambda data: b"[1, 2]", "nothing in it": lambda data: b"{}", "nested": lambda data: b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_file_of_a_checkpoint_is_one_line(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Whatever the libraries raise. A file that a command does not need may be broken."""
    broken = tmp_path / "broken"
    out = ["--output_dir", tmp_path / "out", *FEW]
    commands: dict[Any, list[object]] = {
        score: ["--model", broken, "--data", data, "--output", tmp_path / "scores.parquet"],
        rank_sft: ["--model", broken, "--data", data, *out],
        pretrain: ["--model", broken, "--data", data, *out],
        init: ["--pretrained", broken, "--output_dir", tmp_path / "out"],
    }
    for name in ("config.json", "model.safetensors", "pair_encoding.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(bert, broken)
        (broken / name).write_bytes(BREAK[how]((broken / name).read_bytes()))
        for command, flags in commands.items():
            if command.main([str(flag) for flag in flags]) == 0:
                assert name != "model.safetensors"
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                (tmp_path / "scores.parquet").unlink(missing_ok=True)
                capsys.readouterr()
                continue
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert line.startswith("error: ")


@pytest.mark.parametrize("family", ["bert", "bert-of-its-own"])
def test_code_of_a_checkpoint_is_not_run(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    """A family that transformers knows is loaded by its own code, any other one is refused."""
    hostile, ran = Path(shutil.copytree(bert, tmp_path / "hostile")), tmp_path / "ran"
    (hostile / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    for name, kinds in (("config.json", CODE), ("tokenizer_config.json", {"AutoTokenizer": [None, "own.Model"]})):
        settings = json.loads((hostile / name).read_text())
        settings |= {"auto_map": kinds} | ({"model_type": family} if name == "config.json" else {})
        (hostile / name).write_text(json.dumps(settings))
    expected = 0 if family == "bert" else 2
    flags = ["--model", hostile, "--data", data, "--output", tmp_path / "scores.parquet"]
    assert score.main([str(flag) for flag in flags]) == expected
    assert init.main(["--pretrained", str(hostile), "--output_dir", str(tmp_path / "out")]) == expected
    if expected == 0:
        read_shape(str(hostile), causal=False)
    else:
        with pytest.raises(CheckpointError, match="Python code that it brings along"):
            read_shape(str(hostile), causal=False)
    assert not ran.exists()


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_ports('hub')['hub']}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library asks again, and waits in between
    message = fails(init, capsys, "--pretrained", "no/such-model", "--output_dir", tmp_path / "out")
    assert message.startswith(
        "error: no/such-model: cannot be loaded as a model with a tokenizer: We couldn't connect to"
    )


def test_pickled_weights_are_refused(bert: Path, data: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(bert, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights are pickled \(\*.bin\)"):
        load_scorer(pickled)
