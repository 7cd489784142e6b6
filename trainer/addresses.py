"""Addresses in object stores, and the paths in the mirror that stand for them on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from client.errors import DisRankerError

ADDRESS = re.compile(r"([^=/]*=)?((?:s3|gs|file)://.*)", re.DOTALL)  # as it stands in a command line, or behind NAME=


class StoreError(DisRankerError):
    """An object store refuses something, or does not answer in time; the message mostly begins with the address."""


def local(source: str | Path) -> Path:
    """Where an address lies in the mirror, or in the file system; a path as it is."""
    match = ADDRESS.fullmatch(str(source))
    if match is None:
        return Path(source)
    scheme, _, key = match[2].partition("://")
    if scheme == "file":
        return Path("/", key.removeprefix("localhost/"))
    parts = key.strip("/").split("/")
    if {"", ".", ".."} & {*parts} or "?" in key:
        raise StoreError(f"{source}: an address is {scheme}://bucket/key, without empty parts, dots and parameters")
    return mirror().joinpath(scheme, *parts)


def shown(text: str) -> str:
    """A text with addresses in place of paths in the mirror."""
    return re.sub(rf"{re.escape(str(mirror()))}/(s3|gs)/", r"\1://", text)


def address_of(path: Path) -> str | None:
    """None for a path that is not of the mirror."""
    text = shown(str(path.absolute()))
    return text if ADDRESS.fullmatch(text) else None


def mirror() -> Path:
    """The folder of all that stores have and that is worked on here."""
    return Path(os.environ.get("DISRANKER_MIRROR") or Path.home() / ".cache/disranker/stores").absolute()


@contextmanager
def naming(address: str | Path) -> Iterator[None]:
    """Raise StoreError, which names the address, for what fails in the block."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{shown(str(address))}: {' '.join(str(error).split())}") from error


@contextmanager
def naming_addresses() -> Iterator[None]:
    """Raise an error of ours with addresses in place of paths in the mirror."""
    try:
        yield
    except DisRankerError as error:
        error.args = tuple(shown(each) if isinstance(each, str) else each for each in error.args)
        raise
