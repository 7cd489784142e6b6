"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.errors import DisRankerError


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
