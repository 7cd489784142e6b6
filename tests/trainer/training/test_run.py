"""How a stage begins."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.training.held_out import HeldOut
from trainer.training.run import StageArguments, begin, settings_of


def test_the_users_arguments_stay_as_they_are(tmp_path: Path) -> None:
    """The run's own differ: where it lies, how batches are handed out, and when the model is evaluated."""
    training = StageArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    before, environment = settings_of(training), dict(os.environ)
    run = begin(training, held_out=HeldOut([], "nDCG@10", None))
    assert settings_of(training) == before
    assert dict(os.environ) == environment
    assert run.training.output_dir == str(tmp_path / ".out.run")
    assert run.training.load_best_model_at_end
