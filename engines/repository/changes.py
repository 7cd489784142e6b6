"""Changes of files that are made together or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from client.files import appears_whole


class Changes:
    """All changes of the block are made if it ends well, none if it fails. Every file appears whole."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._staged: list[Path] = []

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for undo in reversed(self._undo):
                undo()
        for directory in self._staged:
            shutil.rmtree(directory, ignore_errors=True)

    def staged(self, directory: Path) -> Path:
        """An empty directory to prepare things in; what is still there at the end is removed."""
        shutil.rmtree(directory, ignore_errors=True)  # of a command that was killed
        directory.mkdir(parents=True)
        self._staged.append(directory)
        return directory

    def write(self, path: Path, content: bytes) -> None:
        before = path.read_bytes() if path.exists() else None
        _write(path, content)
        self._undo.append(path.unlink if before is None else lambda: _write(path, before))

    def remove(self, path: Path) -> None:
        before = path.read_bytes()
        path.unlink()
        self._undo.append(lambda: _write(path, before))

    def move(self, source: Path, target: Path) -> None:
        source.rename(target)
        self._undo.append(lambda: target.rename(source))


def _write(path: Path, content: bytes) -> None:
    with appears_whole(path) as partial:
        partial.write_bytes(content)
