"""Model repositories for tests: versions to install without building them, and what a repository holds."""

from __future__ import annotations

from pathlib import Path

from engines.parity import Difference, ParityReport
from engines.repository.manifest import Manifest
from engines.table import ENGINES

MANIFEST = Manifest(
    engine="openvino",
    precision="bf16",
    runs_in="fp32",
    row_length=256,
    slots_per_row=16,
    max_rows=1000,
    rows_per_call=8,
    encoding_hash="e",
    checkpoint_hash="c",
    versions={"openvino": "1"},
    parity=ParityReport("the engine", 1, 1, 0.0, 1.0, None, (Difference("q", "d", 0.0),)),
    created="2026-01-01T00:00:00+00:00",
    served_by=ENGINES["openvino"].served_by,
)


def write_checkpoint(directory: Path) -> Path:
    """Write the files that the installer reads of a checkpoint, and an engine beside them."""
    directory.mkdir()
    for name in ("tokenizer.json", "pair_encoding.json", "model.xml", "model.bin"):
        (directory / name).write_text(f"the new {name}")
    return directory


def engine_of(checkpoint: Path) -> list[Path]:
    return [checkpoint / "model.xml", checkpoint / "model.bin"]


def contents(root: Path) -> dict[str, bytes]:
    """Every file below ``root``, by its path from there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
