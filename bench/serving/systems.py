"""The systems that are compared, each with its worker, its environment and the settings that it may choose from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.environments import interpreter, run_module
from bench.serving.load import Option

REQUIREMENTS = Path(__file__).with_name("requirements")
BATCHES = (8, 32, 128)
IN_PROCESS = tuple({"batch_size": size, "together": False} for size in BATCHES)
OURS = "ours"
TOKENIZER_SETTINGS = "tokenizer_config.json"


@dataclass(frozen=True)
class System:
    """A system that is compared. Each of its options is tried."""

    name: str
    kind: str  # ours, sentence-transformers, infinity, fastembed
    worker: str  # a module of bench.serving.workers
    setup: dict[str, Any]
    options: tuple[Option, ...] = ()  # settings that a running process takes
    python: Path = Path(sys.executable)

    @property
    def module(self) -> str:
        return f"bench.serving.workers.{self.worker}"


@dataclass(frozen=True)
class Place:
    """The folder of a run and the settings that all systems share.

    Its folder ``made`` has what is made of the checkpoint, by the systems too.
    """

    work: Path
    shared: dict[str, Any]  # checkpoint, traffic, calibration, max_pair_tokens, threads

    @property
    def made(self) -> Path:
        return self.work / "made"

    def setup(self, **more: Any) -> dict[str, Any]:
        return {**self.shared, "made": self.made, **more}

    def repository(self, build: str) -> Path:
        return self.made / f"repository-{build}"


def ours(place: Place, build: str) -> System:
    return System(f"{OURS} {build}", OURS, "ours", place.setup(repository=place.repository(build)))


def engine(place: Place, build: str) -> System:
    """The engine of the same repository, without a server."""
    setup = place.setup(repository=place.repository(build), precision=build.rpartition("-")[2])
    return System(f"engine alone {build}", "engine", "engine", setup)


def _cross_encoder(backend: str, precision: str) -> System:
    kind, setup = "sentence-transformers", {"backend": backend, "precision": precision}
    return System(f"{kind} {backend} {precision}", kind, "cross_encoder", setup, IN_PROCESS)


def _infinity(engine: str) -> System:
    options = tuple({"batch_size": size} for size in BATCHES[:2])
    return System(f"infinity {engine}", "infinity", "infinity", {"engine": engine}, options)


# In this order: what sentence-transformers exports to ONNX is what the later ones read.
PEERS = {
    "st-torch": _cross_encoder("torch", "fp32"),
    "st-torch-bf16": _cross_encoder("torch", "bf16"),
    "st-onnx": _cross_encoder("onnx", "fp32"),
    "st-onnx-int8": _cross_encoder("onnx", "int8"),
    "st-openvino": _cross_encoder("openvino", "fp32"),
    "st-openvino-int8": _cross_encoder("openvino", "int8"),
    "infinity-torch": _infinity("torch"),
    "infinity-optimum": _infinity("optimum"),
    "fastembed": System("fastembed", "fastembed", "fast_embed", {}, IN_PROCESS),
}


def peer(name: str, place: Place, environments: Path) -> System:
    """The system of a name in PEERS, in the environment of its kind, which is made if it is not there."""
    system = PEERS[name]
    environment = "sentence-transformers-optimum" if system.worker == "cross_encoder" else system.kind
    python = interpreter(REQUIREMENTS / f"{environment}.txt", environments, shared_versions=False)
    return replace(system, setup=place.setup(checkpoint=_readable(place), **system.setup), python=python)


def _readable(place: Place) -> Path:
    """A copy that transformers 4 reads too, by its own class of tokenizer, and that cuts texts where we do."""
    copy = place.made / "checkpoint-for-peers"
    if not copy.exists():
        shutil.copytree(place.shared["checkpoint"], copy)
        settings = json.loads((copy / TOKENIZER_SETTINGS).read_text(encoding="utf-8"))
        settings["model_max_length"] = place.shared["max_pair_tokens"]
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (copy / TOKENIZER_SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return copy


def build_ours(place: Place, build: str, gate: Path, calibration: Sequence[str]) -> str:
    """Make a repository of a build, such as ``openvino-int8``, judged on the groups of ``gate``. Returns its output.

    Raises BenchError with the reason of a refusal.
    """
    library, _, precision = build.rpartition("-")
    flags = ["--checkpoint", str(place.shared["checkpoint"]), "--data", str(gate), "--engine", library,
             "--precision", precision, "--model_repository", str(place.repository(build))]  # fmt: skip
    if precision == "int8":
        flags += ["--calibration", *calibration]
    return run_module("build_engines", *flags)
