"""The flags of ``build_engines.py``, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engines.records import EngineError

CALIBRATED = {
    "int8": ("openvino", "onnxruntime"),
    "fp8": ("tensorrt", "tensorrt_rtx"),
}  # by precision, the engines that have it


@dataclass(frozen=True)
class BuildArguments:
    """What to build, for which machine, and where it goes."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory of a scorer."})
    data: str = field(metadata={"help": "Query groups (JSONL, Parquet) that the engine must score as PyTorch does."})
    engine: Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "torch"] = field(
        metadata={"help": "What runs the model."}
    )
    precision: Literal["fp32", "bf16", "fp16", "int8", "fp8"] = field(
        metadata={"help": "What matrix products are computed in."}
    )
    model_repository: str = field(default="model_repository", metadata={"help": "Made if it does not exist."})
    teacher: bool = field(default=False, metadata={"help": "Build the models of the teacher, for relabelling."})
    calibration: list[str] = field(
        default_factory=list,
        metadata={"help": "Queries with documents like the traffic's, none of them in --data, for int8 and fp8."},
    )
    most_kept: int = field(
        default=8, metadata={"help": "Products that int8 may leave in higher precision to pass the gate, at most."}
    )
    rows_per_call: int = field(
        default=0,
        metadata={
            "help": "Rows that openvino, onnxruntime and torch take at a time; 0: measured (torch: by the device)."
        },
    )
    compute_capability: str = field(
        default="", metadata={"help": "Of the GPUs to compile for, such as 8.6,8.9 (tensorrt_rtx)."}
    )
    timing_cache: str = field(
        default="", metadata={"help": "File for what tensorrt measured; by default in ~/.cache/disranker."}
    )
    add_to_newest: bool = field(
        default=False,
        metadata={"help": "The new version has the newest one's plans too: for other GPUs, of the same checkpoint."},
    )
    torch_compile: Literal["gpu", "always", "never"] = field(
        default="gpu",
        metadata={"help": "Where the server compiles --engine torch: on a GPU, on processors too, nowhere."},
    )

    def __post_init__(self) -> None:
        if self.rows_per_call < 0:
            raise EngineError(f"--rows_per_call must be at least 1, or 0 to be measured, not {self.rows_per_call}")
        if self.most_kept < 1:
            raise EngineError(f"--most_kept must be at least 1, not {self.most_kept}")
        if self.compute_capability and self.engine != "tensorrt_rtx":
            raise EngineError("--compute_capability is for --engine tensorrt_rtx; the others build for this machine")
        if self.engine not in CALIBRATED.get(self.precision, (self.engine,)):
            takes = " and ".join(CALIBRATED[self.precision])
            raise EngineError(f"--precision {self.precision} is for --engine {takes}, not {self.engine}")
        if self.engine == "onnxruntime" and self.precision not in ("fp32", "int8"):
            raise EngineError(f"--engine onnxruntime computes in fp32 and int8 on processors, not in {self.precision}")
        if self.calibration and self.precision not in CALIBRATED:
            raise EngineError(f"--calibration is for --precision int8 and fp8; {self.precision} needs none")
        if self.add_to_newest and not self.engine.startswith("tensorrt"):
            raise EngineError("--add_to_newest is for --engine tensorrt, whose plans are of one kind of GPU each")
        if self.timing_cache and self.engine != "tensorrt":
            raise EngineError("--timing_cache is for --engine tensorrt; the others measure nothing when they build")
