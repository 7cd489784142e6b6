"""The record of a checkpoint, ``training.json``: how a stage made it, and out of what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.addresses import shown
from trainer.checkpoints.load import CheckpointError, reading
from trainer.data.records import IR_DATASETS
from trainer.storage import appears_whole

RECORD_FILE = "training.json"
PACKAGES = ("disranker", "torch", "transformers", "tokenizers", "peft")
MAPPINGS = ("arguments", "metrics", "training", "versions")  # what a record names so is an object
ROWS = ("evaluations", "held_out", "stages", "teacher_scores")  # or a list of objects


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    with appears_whole(directory / RECORD_FILE) as partial:
        partial.write_text(shown(json.dumps(record, indent=2, default=str)) + "\n", encoding="utf-8")


def read_record(directory: Path) -> dict[str, Any]:
    """The record that a stage left, ``training.json``; empty where there is none, or a file of others by this name.

    Raises CheckpointError for one that is no JSON.
    """
    path = directory / RECORD_FILE
    if not path.is_file():
        return {}
    with reading(path, "the record of a stage"):
        record = json.loads(path.read_text(encoding="utf-8"))
    return record if _is_ours(record) else {}


def _is_ours(record: Any) -> bool:
    """Whether what others read of a record has the types that stages write."""
    if not isinstance(record, dict) or not all(isinstance(record.get(name, {}), dict) for name in MAPPINGS):
        return False
    rows = [record.get(name, []) for name in ROWS]
    if not all(isinstance(each, list) and all(isinstance(row, dict) for row in each) for each in rows):
        return False
    stages, data = record.get("stages", []), record.get("arguments", {}).get("data") or []
    named = all(isinstance(stage.get("from"), str) and {"stage", "hub"} <= stage.keys() for stage in stages)
    texts = all(map(are_texts, [data, *(stage.get("data") for stage in stages)]))
    return named and texts and ("adapter" not in record or _is_ours(record["adapter"]))


def are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def short_name(path: str, folders: int = 0) -> str:
    """A file's name with some of the folders above, whose rest says nothing to others. A dataset keeps its whole id."""
    return path if path.startswith(IR_DATASETS) else str(Path(*Path(path).parts[-1 - folders :]))


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
    data = [short_name(path) for path in arguments.get("data") or ()]
    return {"stage": record.get("stage"), "from": source if hub else Path(source).name, "hub": hub, "data": data}


def _source(record: Mapping[str, Any]) -> str:
    """The checkpoint, or the shape, that a stage began from."""
    arguments = record.get("arguments", {})
    names = (arguments.get(name) for name in ("model", "pretrained", "config"))
    return str(next(filter(None, names), "/"))


def versions() -> dict[str, str]:
    """The installed packages among those that make a checkpoint."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
