"""The trainer's commands as tests run them: in this process, or in one of their own that can be killed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from multiprocessing.context import ForkServerProcess
from typing import Any

import pytest
import torch

FEW = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--disable_tqdm", "true"]

# A process that has imported everything already: what is killed is a stage, not the start of Python.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [__name__, *(f"trainer.{stage}" for stage in ("pretrain", "rank_sft", "score", "distill"))]
)


def run(module: Any, *flags: object) -> None:
    assert module.main([str(flag) for flag in flags]) == 0


def fails(module: Any, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line that the command prints before it ends with exit code 2."""
    assert module.main([str(flag) for flag in flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def started(stage: str, *flags: object) -> ForkServerProcess:
    process = SERVER.Process(target=_child, args=(stage, [str(flag) for flag in flags]))
    process.start()
    return process


def finish(stage: str, *flags: object) -> int | None:
    process = started(stage, *flags)
    process.join(120)
    return process.exitcode


def _child(stage: str, flags: list[str]) -> None:
    torch.set_num_threads(1)
    os._exit(importlib.import_module(f"trainer.{stage}").main(flags))  # no cleanup, as after a kill
