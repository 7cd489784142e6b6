"""TensorRT plans for several kinds of GPU in one version, gathered build by build: each is built on its own GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engines.records import EngineError
from engines.repository.install import MANIFEST_FILE, Manifest

SAME = (
    "engine", "precision", "runs_in", "row_length", "slots_per_row", "max_rows", "encoding_hash", "checkpoint_hash",
)  # fmt: skip


def carried(student: Path, manifest: Manifest) -> dict[str, Path]:
    """Plans of the newest version for GPUs that the new one has none for, by compute capability.

    Raises EngineError unless that version is of the same checkpoint, precision and TensorRT.
    """
    versions = [path for path in student.glob("*/") if path.name.isdigit()]
    if not versions:
        raise EngineError(f"{student}: no version to add to; build without --add_to_newest first")
    newest = max(versions, key=lambda path: int(path.name))
    found = json.loads((newest / MANIFEST_FILE).read_text(encoding="utf-8"))
    new = asdict(manifest)
    pairs = [(name, found[name], new[name]) for name in SAME]
    pairs.append((f"{manifest.engine} version", *(each["versions"].get(manifest.engine) for each in (found, new))))
    for name, before, now in pairs:
        if before != now:
            raise EngineError(
                f"{newest}: its {name} is {before} and that of this build is {now}: "
                "plans of one version are of the same; build without --add_to_newest"
            )
    return {
        capability: newest / file for capability, file in found["plans"].items() if capability not in manifest.plans
    }
