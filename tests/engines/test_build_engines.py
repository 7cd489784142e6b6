"""The command from checkpoint to installed version, on the project's own model repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import build_engines
from engines.builders import processors
from engines.records import Dimensions, EngineError, Graph
from engines.repository.configs import read_config
from engines.repository.manifest import with_newest_plans
from model_repository.student.runtime.openvino_engine import OpenVinoEngine
from model_repository.tokenizer.pair_encoding import encoding_hash
from tests import ROOT
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from tests.support.exports import exported_once
from tests.support.repositories import MANIFEST, contents

KEYS = {
    "engine", "precision", "runs_in", "row_length", "slots_per_row", "max_rows", "pool_last", "position_offset",
    "rows_per_call", "encoding_hash",
    "checkpoint_hash", "versions", "parity", "created", "cpu", "torch_compile", "plans",
    "served_by", "files", "vocabulary", "tried",
}  # fmt: skip


class Inputs(NamedTuple):
    bert: Path
    llama: Path
    data: Path

    def arguments(self, repository: Path, **changes: str) -> list[str]:
        settings = {
            "checkpoint": str(self.bert),
            "data": str(self.data),
            "engine": "openvino",
            "precision": "fp32",
            "model_repository": str(repository),
            **changes,
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    directory = tmp_path_factory.mktemp("inputs")
    # Of some seeds the one whose scores lie furthest apart: rounding to float16 must not swap two of them anywhere.
    bert, llama = tiny_bert(directory / "bert", layers=1, seed=3), tiny_llama(directory / "llama")
    return Inputs(bert, llama, write_groups(directory / "dev.jsonl"))


@pytest.fixture(scope="module")
def built(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version of the tiny BERT, judged on two files."""
    repository = tmp_path_factory.mktemp("built") / "model_repository"
    more = write_groups(inputs.data.with_name("more.jsonl"), seed=1, name="r")
    assert build_engines.main([*inputs.arguments(repository), "--data", str(inputs.data), str(more)]) == 0
    return repository


def test_version_is_what_its_manifest_says(inputs: Inputs, built: Path) -> None:
    version = built / "student" / "1"
    assert {path.name for path in version.iterdir()} == {"manifest.json", "model.xml", "model.bin", "model.py"}
    manifest = json.loads((version / "manifest.json").read_text())
    assert set(manifest) == KEYS
    assert (manifest["row_length"], manifest["slots_per_row"], manifest["max_rows"]) == (64, 4, 40)
    assert manifest["encoding_hash"] == encoding_hash(inputs.bert) == encoding_hash(built / "tokenizer")
    assert (manifest["parity"]["judged"], manifest["parity"]["pairs"]) == ("the engine", 48)
    assert manifest["parity"]["largest_difference"] < 1e-4
    assert set(manifest["versions"]) == {"openvino", "torch", "transformers", "onnx"}
    assert manifest["served_by"] == "openvino_engine.OpenVinoEngine"


def test_bf16_says_what_it_runs_in(inputs: Inputs, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_engines.main(inputs.arguments(built, checkpoint=str(inputs.llama), precision="bf16")) == 0
    version = max((built / "student").glob("[0-9]*"))
    manifest = json.loads((version / "manifest.json").read_text())
    opened = OpenVinoEngine(version / "model.xml", "bf16", 1)
    assert (manifest["precision"], manifest["runs_in"]) == ("bf16", opened.runs_in)
    assert encoding_hash(built / "tokenizer") == encoding_hash(inputs.llama) == manifest["encoding_hash"]
    output = capsys.readouterr().out
    assert f"{version}: openvino, {manifest['runs_in']}" in output
    assert ("bf16 was asked for" in output) == (manifest["runs_in"] != "bf16")


def test_damaged_engine_is_refused_and_nothing_changes(
    inputs: Inputs, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine is not of this checkpoint: one weight of the head is a thousandth off."""
    graph = Graph(built / "student/1/model.xml", "fp32", Dimensions(64, 4, 40))
    monkeypatch.setattr(processors, "export_graph", lambda *_, **__: graph)
    another = Path(shutil.copytree(inputs.bert, inputs.bert.with_name("another")))
    weights = load_file(another / "model.safetensors")
    weights["classifier.weight"] *= 1.001
    save_file(weights, another / "model.safetensors", {"format": "pt"})
    before = contents(built)
    assert build_engines.main(inputs.arguments(built, checkpoint=str(another))) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("refused: in fp32, scores differ by up to 0.00")
    assert streams.err.count("\n") == 1 and not streams.out
    assert contents(built) == before


def test_tensorrt_rtx_builds_without_a_gpu_and_says_that_it_was_not_run(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"engine": "tensorrt_rtx", "precision": "fp16", "compute_capability": "8.6,8.9"}
    with exported_once(tmp_path / "graph"):
        assert build_engines.main(inputs.arguments(tmp_path / "repository", **changes)) == 0
    version = tmp_path / "repository" / "student" / "1"
    assert {path.name for path in version.iterdir()} == {"manifest.json", "model.sm86.plan", "model.sm89.plan"}
    config = read_config(version.parent / "config.pbtxt")
    assert config.cc_model_filenames == {"8.6": "model.sm86.plan", "8.9": "model.sm89.plan"}
    manifest = json.loads((version / "manifest.json").read_text())
    assert (manifest["engine"], manifest["runs_in"]) == ("tensorrt_rtx", "fp16")
    assert manifest["plans"] == config.cc_model_filenames
    assert manifest["parity"]["mean_kendall_tau"] >= 0.99
    if not torch.cuda.is_available():
        assert "the engine itself was not run" in manifest["parity"]["judged"]
        assert "the engine itself was not run" in capsys.readouterr().out

    another = {**changes, "compute_capability": "12.0", "add_to_newest": "true"}
    with exported_once(tmp_path / "graph"):
        assert build_engines.main(inputs.arguments(tmp_path / "repository", **another)) == 0
    plans = {"8.6": "model.sm86.plan", "8.9": "model.sm89.plan", "12.0": "model.sm120.plan"}
    both = tmp_path / "repository" / "student" / "2"
    assert {path.name for path in both.iterdir()} == {"manifest.json", *plans.values()}
    assert json.loads((both / "manifest.json").read_text())["plans"] == plans
    assert read_config(version.parent / "config.pbtxt").cc_model_filenames == plans
    assert (both / "model.sm86.plan").read_bytes() == (version / "model.sm86.plan").read_bytes()

    with pytest.raises(EngineError, match="student/2: its precision is fp16 and that of this build is bf16"):
        with_newest_plans(both.parent, (), replace(MANIFEST, engine="tensorrt_rtx", precision="bf16"))


def test_checkpoint_without_a_score_head_is_refused(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = tiny_llama(tmp_path / "causal")
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(checkpoint)
    assert build_engines.main(inputs.arguments(tmp_path / "repository", checkpoint=str(checkpoint))) == 2
    assert "not a trained scorer" in one_error(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "runs/missing"}, "runs/missing: no checkpoint here"),
        ({"data": "missing.jsonl"}, "missing.jsonl: cannot be read"),
        ({"rows_per_call": "-1"}, "--rows_per_call must be at least 1, or 0 to be measured"),
        ({"most_kept": "0"}, "--most_kept must be at least 1"),
        ({"precision": "int8"}, "this precision needs --calibration"),
        ({"precision": "int8", "engine": "tensorrt_rtx"}, "--precision int8 is for --engine openvino and onnxruntime"),
        (
            {"precision": "bf16", "engine": "onnxruntime"},
            "--precision bf16 is for --engine openvino, tensorrt, tensorrt_rtx and torch, not onnx",
        ),
        ({"precision": "bf16", "calibration": "log.jsonl"}, "--calibration is for --precision int8 and fp8"),
        ({"compute_capability": "8.6"}, "--compute_capability is for --engine tensorrt_rtx"),
        ({"precision": "fp8"}, "--precision fp8 is for --engine tensorrt and tensorrt_rtx, not openvino"),
        ({"engine": "tensorrt_rtx", "compute_capability": "8.9", "precision": "fp8"}, "needs --calibration"),
        ({"engine": "tensorrt_rtx", "compute_capability": "8.9,8.6", "precision": "fp8"}, "8.6 has no units for it"),
        ({"add_to_newest": "true"}, "--add_to_newest is for --engine tensorrt"),
        ({"timing_cache": "cache"}, "--timing_cache is for --engine tensorrt"),
        ({"engine": "torch", "rows_per_call": "129"}, "--rows_per_call 129: --engine torch takes at most 128"),
        ({"engine": "tensorrt_rtx", "compute_capability": "7.5", "precision": "bf16"}, "bf16 needs compute capability"),
        ({"engine": "tensorrt_rtx", "compute_capability": "9.0"}, "compute capability '9.0' is not one"),
        ({"model_repository": "."}, "not a model repository of ours"),
        pytest.param(
            {"engine": "tensorrt_rtx"},
            "--compute_capability 8.6,8.9",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is one to build for"),
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert build_engines.main(inputs.arguments(tmp_path / "repository", **changes)) == 2
    assert message in one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


OTHERS = ("onnx", "openvino", "nncf", "tensorrt")  # and what is named like them


def test_without_other_engines_packages_auto_takes_torch_which_needs_none(inputs: Inputs, tmp_path: Path) -> None:
    """In an environment like that of ``pip install .[train]``: the installed packages but those of other engines."""
    environment = tmp_path / "site-packages"
    environment.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(OTHERS):
            (environment / package.name).symlink_to(package)
    flags = inputs.arguments(tmp_path / "repository", engine="auto")
    code = f"""
import importlib.util
import build_engines
from engines import versions
assert importlib.util.find_spec("onnx") is importlib.util.find_spec("openvino") is None
assert build_engines.main({flags!r}) == 0
assert build_engines.main({[*flags, "--engine", "onnxruntime"]!r}) == 2
assert versions.main(["list", "--model_repository", {str(tmp_path / "repository")!r}]) == 0
build_engines.main(["--help"])
"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(environment), str(ROOT)])}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1: torch, fp32, " in done.stdout
    assert "{auto,openvino,onnxruntime,tensorrt,tensorrt_rtx,torch}" in done.stdout
    assert "the engine onnxruntime needs onnx" in done.stderr
    manifest = json.loads((tmp_path / "repository/student/1/manifest.json").read_text())
    assert set(manifest["versions"]) == {"torch", "transformers"}


def test_missing_library_is_named_with_what_installs_it(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if not installed, where it is
    assert build_engines.main(inputs.arguments(tmp_path / "repository", engine="tensorrt")) == 2
    assert "pip install 'disranker[gpu]'" in one_error(capsys)


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message
