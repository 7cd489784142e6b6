"""The flags of ``build_engines.py``, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engines.records import EngineError
from engines.table import CALIBRATED, ENGINES, PRECISIONS, names

Compile = Literal["gpu", "always", "never"]


@dataclass(frozen=True)
class BuildArguments:
    """The flags of a build."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory of a scorer."})
    data: list[str] = field(
        metadata={"help": "Queries with documents (JSONL, Parquet) that the engine must score as PyTorch does."}
    )
    engine: str = field(metadata={"help": "What runs the model.", "choices": [*ENGINES]})
    precision: str = field(
        metadata={"help": "What matrix products are computed in.", "choices": PRECISIONS},
    )
    model_repository: str = field(default="model_repository", metadata={"help": "Made if it does not exist."})
    teacher: bool = field(default=False, metadata={"help": "Build the models of the teacher, for relabelling."})
    calibration: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Queries with documents like the traffic's, none of --data's, for {' and '.join(CALIBRATED)}."
        },
    )
    most_kept: int = field(
        default=8,
        metadata={"help": "At most this many products stay in higher precision so that int8 passes the gate."},
    )
    rows_per_call: int = field(
        default=0,
        metadata={
            "help": "Rows that openvino, onnxruntime and torch take at a time; 0: measured (torch: by the device)."
        },
    )
    compute_capability: str = field(
        default="", metadata={"help": "Compute capabilities to compile for, such as 8.6,8.9 (tensorrt_rtx)."}
    )
    timing_cache: str = field(
        default="", metadata={"help": "File for what tensorrt measured; by default in ~/.cache/disranker."}
    )
    add_to_newest: bool = field(
        default=False,
        metadata={"help": "Take over the newest version's plans for other GPUs; they must be of the same checkpoint."},
    )
    torch_compile: Compile = field(
        default="gpu",
        metadata={"help": "Where the server compiles --engine torch: on a GPU, on processors too, nowhere."},
    )

    def __post_init__(self) -> None:
        if self.rows_per_call < 0:
            raise EngineError(f"--rows_per_call must be at least 1, or 0 to be measured, not {self.rows_per_call}")
        if self.most_kept < 1:
            raise EngineError(f"--most_kept must be at least 1, not {self.most_kept}")
        if self.precision not in ENGINES[self.engine].precisions:
            fitting = [engine for engine in ENGINES.values() if self.precision in engine.precisions]
            raise EngineError(f"--precision {self.precision} is for --engine {names(fitting)}, not {self.engine}")
        if self.calibration and self.precision not in CALIBRATED:
            raise EngineError(
                f"--calibration is for --precision {' and '.join(CALIBRATED)}; {self.precision} needs none"
            )
        for flag in ("compute_capability", "add_to_newest", "timing_cache"):
            if getattr(self, flag) and flag not in ENGINES[self.engine].flags:
                fitting = [engine for engine in ENGINES.values() if flag in engine.flags]
                raise EngineError(f"--{flag} is for --engine {names(fitting)}, not {self.engine}")

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities to compile for; none for the GPU at hand."""
        return [part.strip() for part in self.compute_capability.split(",") if part.strip()]
