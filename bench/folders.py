"""Folders whose contents a command may remove: only those that it made."""

from __future__ import annotations

from pathlib import Path

from client.errors import DisRankerError

MARKER = ".made-by-bench"


def own(folder: Path, flag: str, marker: str) -> None:
    """Make the folder, with a file that marks it as one whose contents may be removed.

    Raises DisRankerError for a folder that is not empty and lacks this file.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise DisRankerError(
                f"{flag} {folder}: this folder is not empty, and it was not made by this command (it has no {marker}): "
                "give another, or remove it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / marker).touch()
    except OSError as error:
        raise DisRankerError(f"{flag} {folder}: cannot be made: {error.strerror}") from error
