"""The systems that are compared, each with its worker, its environment and the settings that it may choose from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.environments import BenchError, interpreter, last_line
from bench.serving.cells import Option

REQUIREMENTS = Path(__file__).with_name("requirements")
WORKERS = "bench.serving.workers"
BATCHES = (8, 32, 128)
IN_PROCESS = tuple({"batch_size": size, "together": False} for size in BATCHES)
OURS, ENGINE = "ours", "engine"
TOKENIZER_SETTINGS = "tokenizer_config.json"
OPTIMUM = "sentence-transformers-optimum"


@dataclass(frozen=True)
class System:
    """A system that is compared. Each of its setups and options is tried."""

    name: str
    kind: str  # ours, sentence-transformers, infinity, fastembed
    precision: str
    python: Path
    module: str
    setups: tuple[dict[str, Any], ...]  # settings that need a new process
    options: tuple[Option, ...] = ()  # settings that a running process takes


@dataclass(frozen=True)
class Place:
    """The files that every system is made of, and the folder for those that it makes."""

    checkpoint: Path
    traffic: Path
    calibration: Path
    work: Path
    max_pair_tokens: int
    threads: int

    def setup(self, **more: Any) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint), "traffic": str(self.traffic), "calibration": str(self.calibration),
                "max_pair_tokens": self.max_pair_tokens, "threads": self.threads, **more}  # fmt: skip


def ours(place: Place, build: str) -> System:
    directory = str(place.work / "triton" / build)
    setup = place.setup(repository=str(place.work / f"repository-{build}"), directory=directory)
    return System(f"{OURS} {build}", OURS, _precision(build), Path(sys.executable), f"{WORKERS}.ours", (setup,))


def engine(place: Place, build: str) -> System:
    """The engine of the same repository, without a server."""
    setup = place.setup(repository=str(place.work / f"repository-{build}"))
    name, python = f"engine alone {build}", Path(sys.executable)
    return System(name, ENGINE, _precision(build), python, f"{WORKERS}.engine", (setup,))


def _precision(build: str) -> str:
    return build.rpartition("-")[2]


def _cross_encoder(backend: str, precision: str) -> Callable[[Place, Path], System]:
    def made(place: Place, python: Path) -> System:
        setup = place.setup(backend=backend, precision=precision, directory=str(place.work / f"exported-{backend}"))
        kind, module = "sentence-transformers", f"{WORKERS}.cross_encoder"
        return System(f"{kind} {backend} {precision}", kind, precision, python, module, (setup,), IN_PROCESS)

    return made


def _infinity(engine: str) -> Callable[[Place, Path], System]:
    def made(place: Place, python: Path) -> System:
        setups = tuple(
            place.setup(engine=engine, batch_size=size, directory=str(place.work / f"infinity-{engine}-{size}"),
                        onnx=str(place.work / "exported-onnx" / "onnx" / "model.onnx"))
            for size in BATCHES[:2]
        )  # fmt: skip
        return System(f"infinity {engine}", "infinity", "fp32", python, f"{WORKERS}.infinity", setups)

    return made


def _fastembed(place: Place, python: Path) -> System:
    setup = place.setup(directory=str(place.work / "exported-onnx"))
    return System("fastembed", "fastembed", "fp32", python, f"{WORKERS}.fast_embed", (setup,), IN_PROCESS)


# In this order: what sentence-transformers exports to ONNX is what the later ones read.
PEERS: dict[str, tuple[str, Callable[[Place, Path], System]]] = {
    "st-torch": (OPTIMUM, _cross_encoder("torch", "fp32")),
    "st-torch-bf16": (OPTIMUM, _cross_encoder("torch", "bf16")),
    "st-onnx": (OPTIMUM, _cross_encoder("onnx", "fp32")),
    "st-onnx-int8": (OPTIMUM, _cross_encoder("onnx", "int8")),
    "st-openvino": (OPTIMUM, _cross_encoder("openvino", "fp32")),
    "st-openvino-int8": (OPTIMUM, _cross_encoder("openvino", "int8")),
    "infinity-torch": ("infinity", _infinity("torch")),
    "infinity-optimum": ("infinity", _infinity("optimum")),
    "fastembed": ("fastembed", _fastembed),
}


def peer(name: str, place: Place, environments: Path) -> System:
    environment, made = PEERS[name]
    place = replace(place, checkpoint=_readable(place))
    return made(place, interpreter(REQUIREMENTS / f"{environment}.txt", environments, shared_versions=False))


def _readable(place: Place) -> Path:
    """A copy that transformers 4 reads too, by its own class of tokenizer, and that cuts texts where we do."""
    copy = place.work / "checkpoint-for-peers"
    if not copy.exists():
        shutil.copytree(place.checkpoint, copy)
        settings = json.loads((copy / TOKENIZER_SETTINGS).read_text(encoding="utf-8"))
        settings["model_max_length"] = place.max_pair_tokens
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (copy / TOKENIZER_SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return copy


def build_ours(place: Place, build: str, gate: Path, calibration: Sequence[str]) -> str:
    """Make a repository of a build, such as ``openvino-int8``, judged on the groups of ``gate``. Returns its output.

    Raises BenchError with the reason of a refusal.
    """
    runs, _, precision = build.rpartition("-")
    flags = ["--checkpoint", str(place.checkpoint), "--data", str(gate), "--engine", runs,
             "--precision", precision, "--model_repository", str(place.work / f"repository-{build}")]  # fmt: skip
    if precision == "int8":
        flags += ["--calibration", *calibration]
    done = subprocess.run([sys.executable, "-m", "build_engines", *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"build_engines.py --engine {runs} --precision {precision}: {last_line(done.stderr)}")
    return done.stdout.strip()
