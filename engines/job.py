"""The record that every builder takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from engines.arguments import BuildArguments
from engines.parity import Yardstick, torch_runner
from engines.quantise.calibration import Calibration, read_calibration
from engines.records import Dimensions, EngineError
from engines.table import CALIBRATED
from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import CheckpointError, load_scorer, require_checkpoint
from trainer.data.records import read_groups
from trainer.measures.metrics import MEASURE, judgments


@dataclass(frozen=True)
class Job:
    """A build: what was asked for, and the checkpoint.

    model: the scorer in float32.
    yardstick: what the engine's scores are compared with.
    calibration: rows for the precisions that need them, else None.
    directory: where the engine's files are written.
    """

    arguments: BuildArguments
    encoder: PairEncoder
    model: PreTrainedModel
    yardstick: Yardstick
    calibration: Calibration | None
    directory: Path

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
        if arguments.precision in CALIBRATED:
            if not judgments(groups):
                data, precision = " ".join(arguments.data), arguments.precision
                raise EngineError(f"{data}: no labels, and {precision} is judged by what it costs in {MEASURE}")
            calibration = read_calibration(arguments.calibration, groups, encoder)
        yardstick = Yardstick.of(torch_runner(model, encoder), encoder, groups)
        return cls(arguments, encoder, model, yardstick, calibration, directory)

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions.of(self.encoder.config)
