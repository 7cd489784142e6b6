"""The engines that a checkpoint can be built into, one row for each. Its library is imported when an engine is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from engines.records import EngineError

COMMON_PACKAGES = ("torch", "transformers")  # every build uses them
AUTO = "auto"  # as --engine: the fastest of those below that run on this processor


@dataclass(frozen=True)
class Engine:
    """One engine; its file in a version is named by the class that opens it.

    name: what ``--engine`` and a manifest call it.
    precisions: what ``--precision`` may be.
    builder: "MODULE.CLASS" in engines.builders, which builds it.
    install: what ``pip install`` needs to build it.
    calibrated: the precisions that need ``--calibration`` and are judged by what they cost in nDCG.
    flags: the flags of build_engines.py that not every engine has.
    packages: what a manifest names the versions of, beside the engine's library and COMMON_PACKAGES.
    served_by: "MODULE.CLASS" in the student's runtime/, which runs it in Triton's Python backend; "" for a plan, which
        Triton opens by itself.
    compared: whether ``engines.versions compare`` can run it.
    """

    name: str
    precisions: tuple[str, ...]
    builder: str
    install: str
    calibrated: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("onnx",)
    served_by: str = ""
    compared: bool = False

    @property
    def kind(self) -> str:
        """Engines of one kind can be versions of one repository: Triton opens a plan by itself, Python all others."""
        return "Python's backend" if self.served_by else self.name

    def builder_class(self) -> Any:
        """Raises EngineError where a library that it needs is not installed."""
        return self._loaded(f"engines.builders.{self.builder}")

    def serving_class(self) -> Any:
        """The class that runs it in Triton's Python backend. Raises EngineError where its library is not installed."""
        return self._loaded(f"model_repository.student.runtime.{self.served_by}")

    def _loaded(self, path: str) -> Any:
        module, _, name = path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise EngineError(
                f"the engine {self.name} needs {error.name}, which is not installed: pip install {self.install}"
            ) from error


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "openvino",
            precisions=("fp32", "bf16", "fp16", "int8"),
            calibrated=("int8",),
            builder="openvino.OpenVino",
            install="'disranker[cpu]'",
            served_by="openvino_engine.OpenVinoEngine",
            compared=True,
        ),
        Engine(
            "onnxruntime",
            precisions=("fp32", "int8"),
            calibrated=("int8",),
            builder="onnxruntime.OnnxRuntime",
            install="'disranker[cpu]'",
            served_by="onnxruntime_engine.OnnxRuntimeEngine",
            compared=True,
        ),
        Engine(
            "tensorrt",
            precisions=("fp32", "bf16", "fp16", "fp8"),
            calibrated=("fp8",),
            builder="tensorrt.TensorRt",
            install="'disranker[gpu]'",
            flags=("add_to_newest", "timing_cache"),
        ),
        Engine(
            "tensorrt_rtx",
            precisions=("fp32", "bf16", "fp16", "fp8"),
            calibrated=("fp8",),
            builder="tensorrt.TensorRt",
            install="tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
            flags=("add_to_newest", "compute_capability"),
        ),
        Engine(
            "torch",
            precisions=("fp32", "bf16", "fp16"),
            builder="torch.Torch",
            install="'disranker[train]'",
            packages=(),
            served_by="torch_engine.TorchEngine",
        ),
    )
}
PRECISIONS = tuple(dict.fromkeys(precision for engine in ENGINES.values() for precision in engine.precisions))
CALIBRATED = tuple(dict.fromkeys(precision for engine in ENGINES.values() for precision in engine.calibrated))


def names(engines: list[Engine]) -> str:
    """The names as a sentence has them: "openvino, tensorrt and torch"."""
    *before, last = [engine.name for engine in engines]
    return f"{', '.join(before)} and {last}" if before else last
