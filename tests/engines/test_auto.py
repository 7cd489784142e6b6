"""``--engine auto``, with real engines of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import build_engines
from engines import auto, parity
from engines.auto import ALIKE, INSTALLED, PASSES, choose, measure
from engines.builders.onnxruntime import OnnxRuntime
from engines.builders.openvino import OpenVino
from engines.parity import LIMITS, Limits
from engines.records import Runner
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PairEncoder
from tests.support.checkpoints import write_groups
from tests.support.exports import exported_once
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups


def build(served_folder: Path, repository: Path, *more: str) -> int:
    data = write_groups(repository.parent / "dev.jsonl", queries=8)
    flags = ["--checkpoint", str(served_folder / "bert"), "--data", str(data), "--model_repository", str(repository)]
    with exported_once(served_folder / "graph"):
        return build_engines.main([*flags, "--engine", "auto", "--rows_per_call", "4", *more])


def test_the_fastest_that_passes_is_installed(
    served_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(served_folder, tmp_path / "repository") == 0
    manifest = json.loads((tmp_path / "repository/student/1/manifest.json").read_text())
    tried, table = manifest["tried"], capsys.readouterr().out
    assert {"openvino fp32", "onnxruntime fp32", "onnxruntime int8"} <= {
        f"{trial['engine']} {trial['precision']}" for trial in tried
    }
    (chosen,) = (trial for trial in tried if trial["result"] == INSTALLED)
    assert (manifest["engine"], manifest["precision"]) == (chosen["engine"], chosen["precision"])
    assert chosen["speed"] >= ALIKE * max(trial["speed"] or 0 for trial in tried)
    for trial in tried:
        passes = trial["result"] in (INSTALLED, PASSES)
        assert len(trial["documents_per_second"]) == (3 if passes else 0)
        # Drawn weights may lie too close for bf16, where there are units for it.
        assert passes or (trial["precision"], trial["result"][:7]) in (("int8", "not tri"), ("bf16", "refused"))
        assert trial["engine"] in table and trial["precision"] in table


def without_memory(*_: object) -> None:
    raise MemoryError("no memory\nfor 3 bytes")


def test_where_the_gate_refuses_all_nothing_is_installed(
    served_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in LIMITS:
        monkeypatch.setitem(parity.LIMITS, precision, Limits(score=1e-30))
    monkeypatch.setattr(OpenVino, "build", without_memory)  # a library's own error ends one engine, not the build
    assert build(served_folder, tmp_path / "repository") == 2
    streams = capsys.readouterr()
    assert "not built: MemoryError: no memory" in streams.out and "refused: in " in streams.out
    assert "needs judged --data and" in " ".join(streams.out.split())
    assert streams.err.startswith("error: ") and "none can be installed" in streams.err
    assert not (tmp_path / "repository").exists()


def test_a_build_that_is_interrupted_between_two_engines_installs_none(
    served_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxRuntime, "build", interrupted)
    assert build(served_folder, tmp_path / "repository", "--precision", "fp32") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["dev.jsonl"]


def test_requests_of_each_size_are_timed(
    served_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only engines move: one takes long to start, the other for each document."""
    now = 0.0

    def engine(start_s: float, document_s: float) -> Runner:
        def run(pairs: FlatPairs) -> FloatArray:
            nonlocal now
            now += start_s + document_s * len(pairs)
            return np.zeros(len(pairs), np.float32)

        return run

    monkeypatch.setattr(auto, "cores", lambda: 1)
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(f"engines.auto.time.{clock}", lambda: now)
    groups = read_groups(write_groups(tmp_path / "dev.jsonl"))
    pairs = encode_groups(PairEncoder.load(served_checkpoint), groups)
    slow_start, slow_documents = measure([engine(0.1, 0.001), engine(0.001, 0.01)], pairs)
    largest = max(slow_start)
    assert [*slow_start] == [*slow_documents] == [1, 10, largest] and 300 < largest < 500  # about 4 s of the slower
    assert slow_start == {size: pytest.approx(size / (0.1 + 0.001 * size), rel=1e-3) for size in (1, 10, largest)}
    assert slow_documents == {size: pytest.approx(size / (0.001 + 0.01 * size), rel=1e-3) for size in (1, 10, largest)}


def test_of_engines_that_are_alike_the_first_is_chosen() -> None:
    assert [choose(speeds) for speeds in ([99, 100], [90, 100], [1], [100, 120, 121])] == [0, 1, 0, 1]
