"""Runs that may be interrupted at any moment: whole checkpoints, and settings that must not change.

While a stage runs, its directory lies beside the place of its result. It holds ``settings.json`` and checkpoints of
transformers' Trainer, each with ``whole.json``, which is written last. A checkpoint without that file is broken, and
is removed. One with ``ended.json`` has nothing left to learn: if the result could not be written, it is made of that.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.errors import DisRankerError
from client.files import appears_whole, naming
from trainer.addresses import shown
from trainer.storage import discard, listed, publish

SETTINGS_FILE = "settings.json"
WHOLE_FILE = "whole.json"
ENDED_FILE = "ended.json"
OWNER_FILE = "owner"


class ResumeError(DisRankerError):
    """A directory of an interrupted run that this command cannot resume."""


class NonFiniteLossError(DisRankerError):
    """A loss that is not a number, raised before it changed a weight."""

    exit_code = 1


def checkpoint_of(directory: Path, settings: dict[str, Any], free: set[str]) -> Path | None:
    """The checkpoint from which the run in ``directory`` resumes, if there is one.

    Raises ResumeError, which lists the differences, where that run had other settings; ``free`` ones may differ. So
    does a directory in which another process works.
    """
    if not directory.is_dir():
        return None
    with held(directory):
        checkpoint = drop_broken_checkpoints(directory)
    if checkpoint is not None:
        _refuse_changes(directory, settings, free)
    return checkpoint


def open_shards(directory: Path, settings: dict[str, Any], free: set[str]) -> None:
    """Make a directory for shards, or take the one there. Raises ResumeError for one of other settings."""
    if (directory / SETTINGS_FILE).is_file():
        _refuse_changes(directory, settings, free)
    else:
        new_directory(directory, settings)


def _refuse_changes(directory: Path, settings: dict[str, Any], free: set[str]) -> None:
    before = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
    if changes := differences(before, json.loads(_as_saved(settings)), free):
        raise ResumeError(
            f"{directory}: an interrupted run with other settings ({'; '.join(changes)}): "
            "use those again, or remove the directory to start from the beginning"
        )


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other commands out of the directory, which is made if there is none.

    Raises ResumeError that names the process and the host which work in it. A process that dies holds it no more.
    """
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = directory / OWNER_FILE
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise ResumeError(f"{directory}: {who} works in it: wait for its end, or choose another output") from None
        with naming(directory):
            (directory / OWNER_FILE).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        os.close(descriptor)


def new_directory(directory: Path, settings: dict[str, Any]) -> None:
    """Empty the directory for a run that begins, in place of one that cannot resume."""
    directory.mkdir(parents=True, exist_ok=True)
    in_store = (Path(name.removeprefix(f"{shown(str(directory))}/")) for name in listed(shown(str(directory))))
    for name in {path.parts[0] for path in in_store} | {path.name for path in directory.iterdir()}:
        if name != OWNER_FILE:
            discard(directory / name)
    with appears_whole(directory / SETTINGS_FILE) as partial:
        partial.write_text(_as_saved(settings), encoding="utf-8")
    publish(directory)


def stamps(names: Iterable[str]) -> dict[str, str]:
    """Size and time of the files among ``names``, and in directories among them: a run does not resume with others."""
    found = {shown(path): file for name in names for path, file in listed(name).items()}
    return {path: f"{file.size} bytes of {file.time_ns}" for path, file in found.items()}


def _as_saved(settings: dict[str, Any]) -> str:
    return shown(json.dumps(settings, indent=2, default=str)) + "\n"


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str], name: str = "") -> list[str]:
    """``name: before -> now`` for every setting that differs and is not among the ``free`` ones."""
    changes = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            changes += differences(left, right, free, key)
        elif key not in free and left != right:
            changes.append(f"{key}: {left} -> {right}")
    return changes


def drop_broken_checkpoints(directory: Path) -> Path | None:
    """Remove the newest checkpoints until one is whole, and return that one, or None if none is left.

    The checkpoint of the run's last step is removed too, unless the run has ended there: the Trainer would train one
    step more.
    """
    for step, checkpoint in sorted(numbered(directory).items(), reverse=True):
        if (checkpoint / WHOLE_FILE).is_file() and (directory / SETTINGS_FILE).is_file():
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            if step < state["max_steps"] or (checkpoint / ENDED_FILE).is_file():
                return checkpoint
        remove(checkpoint)
    return None


def numbered(directory: Path) -> dict[int, Path]:
    """By their steps; checkpoint-best is somebody else's."""
    named = ((path.name.rpartition("-")[2], path) for path in directory.glob("checkpoint-*"))
    return {int(step): path for step, path in named if step.isdecimal()}


def remove(checkpoint: Path) -> None:
    """Whatever stops it, what is left of the checkpoint is not taken for a whole one."""
    (checkpoint / WHOLE_FILE).unlink(missing_ok=True)
    discard(checkpoint)


def metrics_of(checkpoint: Path | None) -> dict[str, float] | None:
    """The Trainer's metrics of a run that has ended with this checkpoint, None for one that has steps left."""
    if checkpoint is None or not (checkpoint / ENDED_FILE).is_file():
        return None
    metrics: dict[str, float] = json.loads((checkpoint / ENDED_FILE).read_text(encoding="utf-8"))
    return metrics
