"""The trainer's commands as tests run them: in this process, or in one of their own that can be killed."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FEW = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--disable_tqdm", "true"]

LEARNING = ["--max_steps", "45", "--per_device_train_batch_size", "4", "--learning_rate", "5e-3", *FEW[4:]]

# A process that has imported everything already: what is killed is a stage, not the start of Python.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [__name__, *(f"trainer.{stage}" for stage in ("pretrain", "rank_sft", "score", "distill"))]
)


def run(module: Any, *flags: object) -> None:
    assert module.main([str(flag) for flag in flags]) == 0


def learnt(checkpoint: Path) -> bool:
    """Whether the loss went down, over a third of the steps at each end."""
    curve = [point["loss"] for point in json.loads((checkpoint / "training.json").read_text())["loss_curve"]]
    third = len(curve) // 3
    return bool(np.mean(curve[-third:]) < 0.9 * np.mean(curve[:third]))


def fails(module: Any, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line that the command prints before it ends with exit code 2."""
    assert module.main([str(flag) for flag in flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def started(stage: str, *flags: object, at: str = "", send: int = signal.SIGKILL) -> ForkServerProcess:
    """A process that sends itself the signal ``send`` as it opens, renames to or removes a path that ends in ``at``."""
    process = SERVER.Process(target=_child, args=(stage, [str(flag) for flag in flags], at, send))
    process.start()
    return process


def finish(stage: str, *flags: object, at: str = "", send: int = signal.SIGKILL) -> int | None:
    process = started(stage, *flags, at=at, send=send)
    process.join(120)
    return process.exitcode


def _child(stage: str, flags: list[str], at: str, send: int) -> None:
    def strike(event: str, arguments: tuple[Any, ...]) -> None:
        paths = {"open": arguments[:1], "os.rename": arguments[1:2], "shutil.rmtree": arguments[:1]}.get(event, ())
        if any(str(path).endswith(at) for path in paths):
            os.kill(os.getpid(), send)

    if at:
        sys.addaudithook(strike)
    torch.set_num_threads(1)
    os._exit(importlib.import_module(f"trainer.{stage}").main(flags))  # no cleanup, as after a kill
