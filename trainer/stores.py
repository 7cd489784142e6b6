"""The files of object stores and of the disk: what is there, and how one file comes from there or goes there."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from client import files
from trainer.addresses import StoreError, local

STORES = ("s3", "gs")
CONNECT_S, ANSWER_S = 10.0, 60.0
ATTEMPTS = 8  # of a request, unless AWS_MAX_ATTEMPTS says otherwise; the pause between them grows
AT_ONCE = 8  # files under way
CHUNK = 8 << 20  # bytes


class Found(NamedTuple):
    """A file, as its store or disk describes it."""

    size: int
    time_ns: int


def store_of(source: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address or a path, and the name in it. Raises StoreError for an address of another kind."""
    scheme, colon, key = source.partition("://")
    path = local(source)
    if scheme in STORES and colon:
        return connected(scheme), key.strip("/")
    if colon and scheme != "file":
        raise StoreError(f"{source}: an address begins with s3://, gs:// or file://")
    return fs.LocalFileSystem(), str(path)


@cache
def connected(scheme: str) -> fs.FileSystem:
    """Credentials, region and endpoint come from the environment, as the store's own tools read them."""
    if scheme == "gs":
        return fs.GcsFileSystem()
    # Arrow itself does not read these.
    attempts = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not attempts.isdecimal():
        raise StoreError(f"AWS_MAX_ATTEMPTS is {attempts!r}, not a number")
    if endpoint and "://" not in endpoint:
        raise StoreError(f"AWS_ENDPOINT_URL is {endpoint!r}, not http://HOST:PORT or https://HOST")
    protocol, _, host = endpoint.rstrip("/").partition("://") if endpoint else ("https", "", None)
    return fs.S3FileSystem(
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=int(attempts)), connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S, scheme=protocol, endpoint_override=host, allow_delayed_open=True,
    )  # fmt: skip


def files_at(store: fs.FileSystem, key: str) -> dict[str, Found]:
    """The files at a name or below it."""
    found = store.get_file_info(key)
    if found.type == fs.FileType.NotFound:
        return {}
    all_ = [found] if found.is_file else store.get_file_info(fs.FileSelector(key, recursive=True))
    return {each.path: Found(each.size, each.mtime_ns) for each in all_ if each.is_file}


def found_of(path: Path) -> Found:
    stat = path.stat()
    return Found(stat.st_size, stat.st_mtime_ns)


def get(store: fs.FileSystem, key: str, found: Found, path: Path) -> None:
    if path.is_file() and found_of(path) == found:
        return
    with files.appears_whole(path) as partial:
        fs.copy_files(key, str(partial), source_filesystem=store, destination_filesystem=fs.LocalFileSystem())
        os.utime(partial, ns=(found.time_ns, found.time_ns))


def put(store: fs.FileSystem, path: Path, key: str) -> None:
    """The file takes the time that the store gives it, by which its content is known to be the store's."""
    with path.open("rb") as file, _replacing(store, key) as stream:  # Arrow's copy_files passes over errors
        shutil.copyfileobj(file, stream, CHUNK)
    found = files_at(store, key).get(key)
    if found is None or found.size != path.stat().st_size:
        raise OSError(f"the store did not take {path.name}")
    os.utime(path, ns=(found.time_ns, found.time_ns))


@contextmanager
def _replacing(store: fs.FileSystem, key: str) -> Iterator[Any]:
    """A stream whose content becomes the object at the end of the block; an error leaves the object as it was."""
    stream = store.open_output_stream(key)
    try:
        yield stream
    except BaseException:
        # Arrow cannot give an upload up: a stream that is closed, or freed, puts what it has into the object's place.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise
    stream.close()


def write(store: fs.FileSystem, key: str) -> None:
    with store.open_output_stream(key) as stream:
        stream.write(b"1")


def at_once(act: Callable[[Any], object], names: Iterable[Any]) -> None:
    """On threads, which Ctrl-C lets end."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(act, names))
