"""Addresses in object stores, the same way for every command: what lies there is worked on in a mirror on this machine.

``s3://bucket/key``, ``gs://bucket/key`` and ``file:///path`` may stand wherever a command takes a path. The command
line is where an address becomes a path of the mirror: what the store has there is fetched, unless it is there already
with the same size and time. What ``appears_whole`` makes in the mirror is then put into the store, where an object is
replaced at once. A folder holds ``.uploading`` until all of it is there, and is not taken before. So a store that fails
stops a command as it begins or as it saves. The data of a run change under it only if another command of this machine
fetches the same address after the store's content has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from client import files
from trainer.addresses import ADDRESS, StoreError, address_of, local, mirror, naming, shown
from trainer.stores import Found, at_once, files_at, found_of, get, put, store_of, write

UPLOADING = ".uploading"
WORK = ("run", "shards")  # what an interrupted command leaves beside its output, in .NAME.run


def localised(argv: Sequence[str], far: Iterable[str] = ()) -> list[str]:
    """A command line with a path for each address, whose content has been fetched; values of the flags ``far`` stay.

    Whatever follows such a flag, up to the next one, is taken for its values. Raises StoreError.
    """
    paths, flag = [], ""
    for argument in argv:
        if argument.startswith("--"):
            flag = argument.partition("=")[0]
        match = None if flag in far else ADDRESS.fullmatch(argument)
        paths.append((match[1] or "") + fetched(match[2]) if match else argument)
    return paths


def fetched(source: str, beside: Sequence[str] = WORK) -> str:
    """The path of what lies at an address, which need not exist; anything else but an address as it is.

    What an interrupted command left ``beside`` it is fetched too. Raises StoreError.
    """
    path = local(source)
    if (address := address_of(path)) is None:
        return str(path)
    names = [path, *(path.with_name(f".{path.name}.{work}") for work in beside)]
    with naming(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        for each in names:
            _fetch(each)
    return str(path)


def listed(source: str | Path) -> dict[str, Found]:
    """The files in a folder, at any depth, or the file itself, in order; none where nothing is. Raises StoreError."""
    name = str(source).rstrip("/")
    with naming(name):
        store, key = store_of(name)
        found = files_at(store, key)
    return {name + file.removeprefix(key): found[file] for file in sorted(found)}


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """As ``client.files.appears_whole`` does, in the store too for a path of the mirror. Raises StoreError."""
    with files.appears_whole(path) as partial:
        yield partial
    publish(path)


def publish(path: Path) -> None:
    """Put a file or a folder of the mirror into its store; a folder that the store lacks appears whole.

    What the store has already with the same size and time stays, and so does all else in a folder that it has: another
    machine may have put it there. A path that is not of the mirror is left alone. Raises StoreError.
    """
    # A part of what is not whole yet goes up with it.
    if (address := address_of(path)) is None or _is_partial(path):
        return
    with naming(address):
        store, key = store_of(address)
        if path.is_file():
            at_once(lambda each: put(store, each, key), [path])
            return
        there, mark = files_at(store, key), f"{key}/{UPLOADING}"
        wanted = {f"{key}/{each.relative_to(path)}": each for each in _files_here(path)}
        changed = [name for name, each in wanted.items() if there.get(name) != found_of(each)]
        if appears := not there or mark in there:
            write(store, mark)
        for part in (wanted.keys() - there.keys(), there.keys() & {*changed}):  # what is new first, then what replaces
            at_once(lambda name: put(store, wanted[name], name), part)
        if appears:
            at_once(store.delete_file, there.keys() - wanted.keys() - {mark})
            store.delete_file(mark)


def discard(path: Path) -> None:
    """Remove a file or a folder, in the store too for one of the mirror. Raises StoreError."""
    if (address := address_of(path)) is not None:
        with naming(address):
            store, key = store_of(address)
            mark = f"{key}/{UPLOADING}"
            if path.is_dir():
                write(store, mark)  # what is left of it, if this is cut short, is not taken for whole
            at_once(store.delete_file, files_at(store, key).keys() - {mark})
            if path.is_dir():
                store.delete_dir(key)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_writable(*paths: str | Path | None) -> None:
    """As ``client.files.check_writable`` does; in a store, by an object that is made and removed. Raises StoreError."""
    files.check_writable(*paths)
    for path in paths:
        if path is not None and (address := address_of(Path(path))) is not None:
            with naming(address):
                store, key = store_of(address)
                tried = f"{key}.{socket.gethostname()}-{os.getpid()}.tried"  # the processes of a job try at once
                write(store, tried)
                store.delete_file(tried)


def _fetch(path: Path) -> None:
    """Make the mirror's file or folder what the store has, unless another command works in the folder."""
    store, key = store_of(shown(str(path)))
    there = files_at(store, key)
    if outside := [name for name in there if ".." in Path(name).parts]:
        raise StoreError(f"{shown(str(path))}: an object there is named {outside[0]!r}, which is no path below it")
    # The command that left half of a folder there, started again, replaces it.
    halves = tuple(name.removesuffix(UPLOADING) for name in there if name.endswith(f"/{UPLOADING}"))
    there = {name: file for name, file in there.items() if not name.startswith(halves or ("\0",))}
    with _locked(path) as free:
        if not free:
            return
        wanted = {path / Path(name).relative_to(key): name for name in there}
        for other in {*_files_here(path)} - wanted.keys():
            other.unlink()
        if path.is_dir() and not wanted:
            shutil.rmtree(path)
        at_once(lambda each: get(store, wanted[each], there[wanted[each]], each), wanted)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether nobody holds the folder, as a run holds its own; one process of a machine fetches at a time."""
    locks = mirror() / ".locks"  # not beside the data, which are published and replaced
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / hashlib.sha256(os.fsencode(path)).hexdigest()).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            yield True
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)


def _files_here(path: Path) -> list[Path]:
    """The file, or the files in the folder at any depth, but for those that somebody is writing."""
    inside = [path] if path.is_file() else path.rglob("*")
    return [each for each in inside if each.is_file() and not _is_partial(each)]


def _is_partial(path: Path) -> bool:
    return any(part.endswith(".partial") for part in path.parts)
