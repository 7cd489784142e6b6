"""The record of a checkpoint, ``training.json``: how a stage made it, and out of what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from client.files import appears_whole
from trainer.checkpoints.load import CheckpointError, reading

RECORD_FILE = "training.json"
PACKAGES = ("disranker", "torch", "transformers", "tokenizers", "peft")


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    with appears_whole(directory / RECORD_FILE) as partial:
        partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def read_record(directory: Path) -> dict[str, Any]:
    """The record that a stage left, ``training.json``; empty where there is none, or a file of others by this name.

    Raises CheckpointError for one that is no JSON.
    """
    path = directory / RECORD_FILE
    if not path.is_file():
        return {}
    with reading(path, "the record of a stage"):
        record = json.loads(path.read_text(encoding="utf-8"))
    ours = isinstance(record, dict) and isinstance(record.get("arguments", {}), dict)
    return record if ours else {}


def stages_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that made a checkpoint, the first one first, by the record of the one that it came from.

    Each names what it began ``from``, without the folders above, and its data. ``hub`` marks a name of the hub.
    """
    earlier: dict[str, Any] = record.get("adapter", {})
    if not earlier:
        with suppress(CheckpointError):  # a broken record of the start must not cost the result
            earlier = read_record(Path(_source(record)))
    return [*(earlier.get("stages") or [_stage(each) for each in (earlier,) if each]), _stage(record)]


def _stage(record: Mapping[str, Any]) -> dict[str, Any]:
    arguments, source = record.get("arguments", {}), _source(record)
    hub = bool(arguments.get("pretrained")) and not Path(source).exists()
    data = [Path(path).name for path in arguments.get("data") or ()]
    return {"stage": record.get("stage"), "from": source if hub else Path(source).name, "hub": hub, "data": data}


def _source(record: Mapping[str, Any]) -> str:
    """The checkpoint, or the shape, that a stage began from."""
    arguments = record.get("arguments", {})
    names = (arguments.get(name) for name in ("model", "pretrained", "config"))
    return str(next(filter(None, names), "/"))


def versions() -> dict[str, str]:
    """Of the packages that make a checkpoint, those that are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
