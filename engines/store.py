"""A model repository in an object store: published as one set, fetched and checked before Triton loads it.

python -m engines.store publish s3://models/ranker/7 --model_repository model_repository
python -m engines.store fetch s3://models/ranker/7 --digest DIGEST --model_repository /models/ranker

What is published never changes. Beside the files lies SHA256SUMS, which is written last and which sha256sum can check;
its own SHA-256 is the digest, so whoever knows the digest needs to trust neither the store nor the way. Only the
versions are published that Triton would serve. This needs pyarrow and the standard library, so that it runs in Triton's
container. Stores are reached and asked again as by the trainer's commands (trainer/stores.py).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pyarrow import fs

from client.command import command
from client.files import appears_whole
from model_repository.student.digests import damage, sha256
from model_repository.student.served import served_versions, versions_of
from trainer.addresses import StoreError, naming
from trainer.stores import store_of

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
KEPT, EMPTY = ".gitkeep", hashlib.sha256().hexdigest()
CHUNK_BYTES = 2**22


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, or 2 for bad input."""
    given = _parser().parse_args(argv)
    repository = Path(given.model_repository)
    if given.command == "publish":
        digest = publish(repository, given.address)
    else:
        digest = fetch(given.address, repository, given.digest)
    print(f"{given.address} {digest}")


def publish(repository: Path, address: str) -> str:
    """Copy what Triton would serve, and return its digest. Raises StoreError where something lies there already."""
    files = served_files(repository)
    sums = "".join(f"{sha256(path) if path else EMPTY}  {name}\n" for name, path in files.items()).encode()
    with _store(address) as (store, folder):
        if _exists(store, f"{folder}/{SUMS}"):
            raise StoreError(f"{address}: there is a repository already, and it never changes: choose another address")
        for name, path in files.items():
            _write(store, f"{folder}/{name}", path.open("rb") if path else io.BytesIO())
        _write(store, f"{folder}/{SUMS}", io.BytesIO(sums))
    return hashlib.sha256(sums).hexdigest()


def served_files(repository: Path) -> dict[str, Path | None]:
    """The files that Triton reads of a repository, by path from there; None for an empty one that keeps a folder.

    Raises StoreError for a folder that is no repository.
    """
    models = [path.parent for path in sorted(repository.glob("*/config.pbtxt"))]
    if not models:
        raise StoreError(f"{repository}: not a model repository (no folder in it has a config.pbtxt)")
    found = dict[str, Path | None]()
    for model in models:
        idle = {*map(str, versions_of(model))} - {*map(str, served_versions(model))}
        for path in sorted(model.rglob("*")):
            _, *inside = path.relative_to(repository).parts
            if inside[0] in idle or any(part.startswith((".", "__pycache__")) for part in inside):
                continue
            if path.is_file():
                found[str(path.relative_to(repository))] = path
        for version in served_versions(model):  # of an ensemble it is empty, and Triton wants it
            found[f"{model.name}/{version}/{KEPT}"] = None
    return found


def fetch(address: str, repository: Path, expected: str | None = None) -> str:
    """Copy a published repository to a folder that appears whole, and return its digest.

    A folder that is there already, with the same files, stays. Raises StoreError, and makes nothing, for a file that
    is missing or is not what was published, and for another digest than the one that is ``expected``.
    """
    with _store(address) as (store, folder):
        if not _exists(store, f"{folder}/{SUMS}"):
            raise StoreError(f"{address}: no repository was published here (it has no {SUMS})")
        with store.open_input_stream(f"{folder}/{SUMS}") as source:
            sums = source.read()
        digest = hashlib.sha256(sums).hexdigest()
        if expected not in (None, digest):
            raise StoreError(f"{address}: its digest is {digest}, not {expected}")
        wanted = _read_sums(address, sums)
        if repository.is_dir() and any(repository.iterdir()):
            if wrong := damage(repository, wanted):
                raise StoreError(f"{repository}: something else is there already: {wrong}")
            return digest
        with appears_whole(repository) as partial:
            for name, sum_ in wanted.items():
                _read(store, f"{folder}/{name}", partial / name)
                if sha256(partial / name) != sum_:
                    raise StoreError(f"{address}/{name} is not what was published (its SHA-256 differs)")
    return digest


def _read_sums(address: str, sums: bytes) -> dict[str, str]:
    """The SHA-256 by name. Raises StoreError for what this command has not written."""
    lines = [LINE.fullmatch(line) for line in sums.decode("utf-8", "replace").splitlines()]
    found = {match[2]: match[1] for match in lines if match}
    outside = [name for name in found if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if len(found) < len(lines) or outside or not found:
        raise StoreError(f"{address}/{SUMS}: this is no list of a repository's files")
    return found


def _write(store: fs.FileSystem, key: str, source: BinaryIO) -> None:
    if isinstance(store, fs.LocalFileSystem):  # in the others a folder is an object more
        store.create_dir(str(PurePosixPath(key).parent))
    with source, store.open_output_stream(key) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _read(store: fs.FileSystem, key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.open_input_stream(key) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _exists(store: fs.FileSystem, key: str) -> bool:
    return bool(store.get_file_info(key).type == fs.FileType.File)


@contextmanager
def _store(address: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """The store of an address, and the folder in it. Raises StoreError for what it refuses."""
    with naming(address):
        yield store_of(address)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines.store", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("publish", "copy what Triton would serve"), ("fetch", "copy it here, and check every file")):
        one = commands.add_parser(name, help=does)
        one.add_argument("address", help="s3://bucket/folder, gs://bucket/folder, file:///folder or a path")
        one.add_argument("--model_repository", default="model_repository", help="a folder (default %(default)s)")
        if name == "fetch":
            one.add_argument("--digest", help="what publish printed; another one is refused")
    return parser


if __name__ == "__main__":
    sys.exit(main())
