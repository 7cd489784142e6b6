"""Which versions of a model Triton serves, read off its configuration without protobuf.

Only the standard library is needed. A link to this file lies in the tokenizer's folder, because Triton shows a model
its own folder only.
"""

from __future__ import annotations

import re
from pathlib import Path

NO_SETTING = re.compile(r"""#.*|"(\\.|[^"\\])*"|'(\\.|[^'\\])*'""")  # comments and strings
SPECIFIC = re.compile(r"version_policy\s*:?\s*\{\s*specific\s*:?\s*\{([^{}]*)\}")
NUMBER = re.compile("[1-9][0-9]*")  # what Triton takes for one


def versions_of(model: Path) -> list[int]:
    """The versions in a model's directory, the oldest first. As for Triton, only the directory's name counts."""
    return sorted(int(path.name) for path in model.glob("*") if NUMBER.fullmatch(path.name) and path.is_dir())


def served_versions(model: Path, config: Path | None = None) -> list[int]:
    """The versions that Triton serves: those that the config names, that of the ensemble first, else the newest.
    Without ``config`` it is the model's config.pbtxt."""
    config = config or model / "config.pbtxt"
    text = NO_SETTING.sub("", config.read_text(encoding="utf-8")) if config.is_file() else ""
    if named := SPECIFIC.search(text):
        return [int(number) for number in re.findall(r"\d+", named[1])]
    return versions_of(model)[-1:]


def served_version(model: Path) -> int:
    """The version that the ensemble asks; 0 for none."""
    return next(iter(served_versions(model)), 0)
