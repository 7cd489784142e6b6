"""The engine's files of a version, against the digests that the build left in its manifest. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def damage(version: Path, files: Mapping[str, str]) -> str:
    """Say which file is not as ``files`` has it, SHA-256 by name; "" for none. Older releases name no files."""
    for name, expected in files.items():
        path = version / name
        if not path.is_file():
            return f"{path} is missing: build the version again"
        if sha256(path) != expected:
            return f"{path} is not what was built (its SHA-256 differs): restore it, or build the version again"
    return ""
