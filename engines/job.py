"""A build: its flags, which of them go together, and the record that every builder takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from engines.parity import Yardstick
from engines.quantise.calibration import Calibration, read_calibration
from engines.records import Dimensions, EngineError
from engines.reference import torch_runner
from engines.table import AUTO, CALIBRATED, ENGINES, PRECISIONS, Engine, names
from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import CheckpointError, load_scorer, require_checkpoint
from trainer.data.records import read_groups
from trainer.measures.metrics import MEASURE, judgments

Compile = Literal["gpu", "always", "never"]


@dataclass(frozen=True)
class BuildArguments:
    """The flags of a build."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory of a scorer."})
    data: list[str] = field(
        metadata={"help": "Queries with documents (JSONL, Parquet) that the engine must score as PyTorch does."}
    )
    engine: str = field(
        default_factory=lambda: "" if torch.cuda.is_available() else AUTO,
        metadata={
            "help": "What runs the model; auto measures those for this processor and installs the fastest that passes.",
            "choices": [AUTO, *ENGINES],
        },
    )
    precision: str = field(
        default="",
        metadata={"help": "What matrix products are computed in; auto tries all by default.", "choices": PRECISIONS},
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
        if not self.engine:
            raise EngineError("--engine is needed where there is a GPU: tensorrt or torch, or auto for the processor")
        if not self.precision and self.engine != AUTO:
            raise EngineError(
                f"--engine {self.engine} needs a --precision: {', '.join(ENGINES[self.engine].precisions)}"
            )
        if self.precision:
            fitting = [engine for engine in ENGINES.values() if self.precision in engine.precisions]
            self._require_one_of(fitting, f"precision {self.precision}")
        if self.calibration and self.precision and self.precision not in CALIBRATED:
            raise EngineError(
                f"--calibration is for --precision {' and '.join(CALIBRATED)}; {self.precision} needs none"
            )
        for flag in ("compute_capability", "add_to_newest", "timing_cache"):
            if getattr(self, flag):
                self._require_one_of([engine for engine in ENGINES.values() if flag in engine.flags], flag)

    def _require_one_of(self, fitting: list[Engine], flag: str) -> None:
        """Raises EngineError where the flag is for other engines than was asked for."""
        if not any(engine in fitting for engine in self.engines):
            raise EngineError(f"--{flag} is for --engine {names(fitting)}, not {self.engine}")

    @property
    def engines(self) -> list[Engine]:
        """The one engine that was asked for, or all that processors can have."""
        if self.engine != AUTO:
            return [ENGINES[self.engine]]
        return [engine for engine in ENGINES.values() if engine.served_by]

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities to compile for; none for the GPU at hand."""
        return [part.strip() for part in self.compute_capability.split(",") if part.strip()]


@dataclass(frozen=True)
class Job:
    """A build: what was asked for, and the checkpoint.

    model: the scorer in float32.
    yardstick: what the engine's scores are compared with.
    calibration: rows for the precisions that need them, else None.
    directory: where the engine's files are written.
    shared: where the exported graph is, for all engines that are built of it.
    """

    arguments: BuildArguments
    encoder: PairEncoder
    model: PreTrainedModel
    yardstick: Yardstick
    calibration: Calibration | None
    directory: Path
    shared: Path

    @classmethod
    def of(cls, arguments: BuildArguments, directory: Path) -> Job:
        """Load the checkpoint and score the judged pairs. Raises CheckpointError, DataError and EngineError."""
        checkpoint = Path(arguments.checkpoint)
        require_checkpoint(checkpoint)
        if not (checkpoint / "config.json").is_file():
            raise CheckpointError(f"{checkpoint}: no checkpoint here (it has no config.json)")
        encoder = PairEncoder.load(checkpoint)
        model = load_scorer(checkpoint, encoder)
        groups = read_groups(*arguments.data)
        calibration = None
        if arguments.calibration or arguments.precision in CALIBRATED:
            if not judgments(groups):
                data, precision = " ".join(arguments.data), arguments.precision or "int8"
                raise EngineError(f"{data}: no labels, and {precision} is judged by what it costs in {MEASURE}")
            calibration = read_calibration(arguments.calibration, groups, encoder)
        yardstick = Yardstick.of(torch_runner(model, encoder), encoder, groups)
        return cls(arguments, encoder, model, yardstick, calibration, directory, directory)

    def alone(self, engine: Engine, precision: str) -> Job:
        """The build of one engine, in a directory of its own, among those that are tried."""
        directory = self.directory / f"{engine.name}-{precision}"
        directory.mkdir()
        calibrated = precision in engine.calibrated
        arguments = replace(
            self.arguments,
            engine=engine.name,
            precision=precision,
            calibration=self.arguments.calibration if calibrated else [],
        )
        calibration = self.calibration if calibrated else None
        return replace(self, arguments=arguments, calibration=calibration, directory=directory)

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions.of(self.encoder.config)
