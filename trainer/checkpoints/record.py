"""The record of a checkpoint, ``training.json``: how a stage made it, and out of what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from client.files import appears_whole
from trainer.checkpoints.load import reading

RECORD_FILE = "training.json"
PACKAGES = ("disranker", "torch", "transformers", "tokenizers", "peft")


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    with appears_whole(directory / RECORD_FILE) as partial:
        partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def read_record(directory: Path) -> dict[str, Any]:
    """The record that a stage left, ``training.json``; empty where there is none."""
    path = directory / RECORD_FILE
    if not path.is_file():
        return {}
    with reading(path, "the record of a stage"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def stages_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that made a checkpoint, the first one first, by the records of the checkpoints that it came from.

    Each names what it began ``from``, without the folders above, and its data. ``hub`` marks a name of the hub.
    """
    arguments = record.get("arguments", {})
    source = arguments.get("model") or arguments.get("pretrained") or arguments.get("config") or ""
    if "adapter" in record:
        before = stages_of(record["adapter"])
    else:
        earlier = read_record(Path(source)) if source else {}
        before = earlier.get("stages") or (stages_of(earlier) if earlier else [])
    hub = bool(arguments.get("pretrained")) and not Path(source).exists()
    data = [Path(path).name for path in arguments.get("data") or ()]
    own = {"stage": record.get("stage"), "from": source if hub else Path(source).name, "hub": hub, "data": data}
    return [*before, own]


def versions() -> dict[str, str]:
    """Of the packages that make a checkpoint, those that are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
