"""Files and folders that appear whole or not at all, whatever ends the process or the machine meanwhile."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.errors import DisRankerError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How libraries that are not written in Python say that the disk refused: Rust's (safetensors, tokenizers), PyTorch's.
NO_OS_ERRORS = ("(os error ", "inline_container")
FORGOTTEN_S = 24 * 3600.0  # in which a writer changes what it writes


def check_writable(*paths: str | Path | None) -> None:
    """Raise DisRankerError where ``appears_whole`` could make nothing, before the work that it would lose."""
    for path in paths:
        if path is None:
            continue
        above = next(folder for folder in Path(path).absolute().parents if folder.exists())
        with naming(path), tempfile.TemporaryFile(dir=above) as file:
            file.write(b"tried")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Raise DisRankerError for what the disk refuses in the block: it names ``path``, or the file that it concerns."""
    try:
        yield
    except Exception as error:
        refused = isinstance(error, OSError) or any(words in str(error) for words in NO_OS_ERRORS)
        if isinstance(error, DisRankerError) or not refused:
            raise
        short = None if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)
        reason = short or str(error).partition("\n")[0]  # a file that is not there is another one than the path
        if other := _read_file(path, error):
            raise DisRankerError(f"{other}: {reason}") from error
        raise DisRankerError(f"{path}: cannot be written: {reason}") from error


def _read_file(path: str | Path, error: Exception) -> str | None:
    """The file that an error concerns, if it lies neither beside ``path`` nor on the way to it.

    What a full disk says of a copy names the file that is copied, which is not at fault.
    """
    name, place = getattr(error, "filename", None), Path(path).absolute()
    if not isinstance(name, str) or getattr(error, "errno", None) in FULL:
        return None
    if place.is_relative_to(other := Path(name).absolute()):
        return None
    return None if other.is_relative_to(place.parent) else name


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; it is renamed to ``path`` if the block ends without error.

    Folders above ``path`` are made. A file at ``path`` is replaced, a folder that is not empty is not. Raises
    DisRankerError for what cannot be written; every error leaves ``path`` as it was and nothing beside it. What killed
    processes left there is removed; hosts may share the folder.
    """
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                with suppress(FileNotFoundError):  # its writer has ended, or another one clears up
                    if _is_forgotten(left):
                        _remove(left)
            yield partial
            move(partial, path)
    finally:
        _remove(partial)


def _host() -> str:
    """Where a process is known by its number: containers may share the host's name, yet number their own."""
    numbered = Path("/proc/self/ns/pid")
    return f"{socket.gethostname().replace('.', '-')}-{numbered.stat().st_ino if numbered.exists() else 0}"


def _is_forgotten(partial: Path) -> bool:
    """Whether its writer was killed.

    Processes of other hosts and containers cannot be seen, so theirs must have changed nothing for a day.
    """
    host, process = partial.name.split(".")[-3:-1]
    if host == _host():
        return not Path("/proc", process).exists()
    return time.time() - partial.stat().st_mtime > FORGOTTEN_S


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder once all of it is on the disk; after a power cut it is there whole, or as before."""
    flush(source)
    source.replace(target)
    _synchronise(target.parent)


def flush(path: Path) -> None:
    """Return when a file, or all that a folder holds, is on the disk."""
    for inside in path.rglob("*") if path.is_dir() else ():
        _synchronise(inside)
    _synchronise(path)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
