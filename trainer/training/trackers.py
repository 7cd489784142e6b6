"""Where the loss curve goes, ``--report_to``: TensorBoard's files, or a tracker of experiments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from client.errors import DisRankerError
from trainer.checkpoints.load import first_line


class TrackerError(DisRankerError):
    """A tracker that cannot be reached, or does not know who asks. Nothing was trained."""


def prepare_trackers(trainer: Trainer, logs: Path) -> None:
    """Have TensorBoard write to ``logs``, and any tracker that does not begin raise TrackerError, before training."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(logs)
        for name, kind in INTEGRATION_TO_CALLBACK.items():
            if type(callback) is kind and hasattr(callback, "setup"):
                callback.setup = _named(name, callback.setup)


def _named(tracker: str, setup: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(setup)
    def named(*arguments: Any, **settings: Any) -> None:
        try:
            setup(*arguments, **settings)
        except Exception as error:  # libraries of all kinds
            raise TrackerError(f"--report_to {tracker}: {first_line(error)}") from error

    return named
