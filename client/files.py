"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.errors import DisRankerError


def check_writable(*paths: str | Path | None) -> None:
    """Raise DisRankerError where ``appears_whole`` could make nothing, before the work that it would lose."""
    for path in paths:
        if path is None:
            continue
        above = next(folder for folder in Path(path).absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            reason = "is read-only" if above.is_dir() else "is no directory"
            raise DisRankerError(f"{path}: cannot be written: {above} {reason}")


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; it is renamed to ``path`` if the block ends without error.

    Folders above ``path`` are made. A file at ``path`` is replaced, a folder that is not empty is not. Raises
    DisRankerError for what cannot be written; every error leaves ``path`` as it was and nothing beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise DisRankerError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        elif partial.exists():
            partial.unlink()
