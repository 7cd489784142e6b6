"""The keys of callers: whose a key is, how often it may ask, and how often an address may be wrong."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from client import InvalidRequestError
from client.gateway.connections import neighbourhood
from client.gateway.logs import LOG
from client.gateway.problems import Problem
from client.gateway.settings import Settings

LOOKED_S = 1.0  # the file is looked at so seldom
GUESSES, PER_GUESS_S = 10.0, 6.0  # of an address at once, and until there is another one
ADDRESSES = 10_000  # that are remembered
LEAST_RATE = 0.001  # a second
FORM = "a line is NAME KEY, or NAME KEY REQUESTS_PER_SECOND"


class Bucket:
    """Takes from what is left of a number that fills up again: ``per_s`` a second, up to ``most``."""

    def __init__(self, per_s: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_s, most, clock
        self._left, self._at = most, clock()

    def wait_s(self) -> float:
        """How long until there is one; 0 if there is."""
        now = self._clock()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._per_s), now
        return max(0.0, (1 - self._left) / self._per_s)

    def take(self) -> None:
        self._left -= 1


class Key(NamedTuple):
    """Its name, for metrics and logs, and what is left of its rate, if it has one."""

    name: str
    rate: Bucket | None = None


class Keys:
    """Those of the settings, which have numbers for names, and those of the file, which is read again when it changes.

    Raises InvalidRequestError for a file that is not as it should be.
    """

    def __init__(self, settings: Settings) -> None:
        plain = [key.get_secret_value() for key in settings.api_keys]
        self._plain = {_hash(key.encode()): Key(str(number)) for number, key in enumerate(plain, start=1)}
        self._path, self._version, self._looked = settings.key_file, _version(settings.key_file), time.monotonic()
        self._keys = self._plain | _read(self._path)
        self._guesses = OrderedDict[str, Bucket]()
        self._known = OrderedDict[tuple[str, str], None]()  # addresses, and the names of keys that came from them

    @property
    def needed(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str, host: str) -> str:
        """The name of the key. Raises a Problem of 401 or 429.

        An address that was wrong too often is refused whatever it says, or one could go on guessing. Keys that were
        right before stay right there, since behind a proxy all callers may have one address.
        """
        self._look()
        scheme, _, given = authorization.encode("latin-1").partition(b" ")  # the bytes that came
        key = self._keys.get(_hash(given.strip())) if scheme.lower() == b"bearer" else None
        address = neighbourhood(host)
        if authorization and (key is None or (address, key.name) not in self._known):  # no key at all is no guess
            self._check_guess(address, key)
        if key is None:
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "an API key is needed, as Authorization: Bearer KEY", headers=challenge)
        _remember(self._known, (address, key.name), None)
        if key.rate is not None:
            _wait(key.rate.wait_s(), f"the key {key.name!r} has asked more often than it may: try again")
            key.rate.take()
        return key.name

    def reread(self) -> None:
        """Read the file. One that is not as it should be leaves the keys that there are."""
        self._version = _version(self._path)
        try:
            self._keys = self._plain | _read(self._path)
        except InvalidRequestError as error:
            LOG.error("the keys stay as they were: %s", error)
            return
        LOG.info("read %d keys", len(self._keys))

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is not None and now - self._looked >= LOOKED_S:
            self._looked = now
            if _version(self._path) != self._version:
                self.reread()

    def _check_guess(self, address: str, key: Key | None) -> None:
        bucket = self._guesses.get(address)
        if bucket is not None:
            _wait(bucket.wait_s(), "wrong API keys came from this address too often: try again")
        if key is None:
            bucket = bucket or Bucket(1 / PER_GUESS_S, GUESSES)
            bucket.take()
            _remember(self._guesses, address, bucket)


def _wait(seconds: float, message: str) -> None:
    if seconds > 0:
        raise Problem(429, message, "Overloaded", {"Retry-After": str(math.ceil(seconds))})


def _remember(found: OrderedDict[Any, Any], name: Any, value: Any) -> None:
    found[name] = value
    found.move_to_end(name)
    if len(found) > ADDRESSES:
        found.popitem(last=False)


def _hash(key: bytes) -> bytes:
    """Keys are looked up by it: the time that this takes tells nothing of them."""
    return hashlib.sha256(key).digest()


def _version(path: Path | None) -> object:
    """A value that changes with the file's content; None without one."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: Path | None) -> dict[bytes, Key]:
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    keys = dict(_parsed(path, lines))
    if not keys:
        raise InvalidRequestError(f"{path}: has no key: {FORM}")
    return keys


def _parsed(path: Path, lines: list[str]) -> Iterator[tuple[bytes, Key]]:
    seen = set[object]()
    for number, line in enumerate(lines, start=1):
        name, *rest = line.split() or ["#"]
        if name.startswith("#"):
            continue
        if len(rest) not in (1, 2):
            raise InvalidRequestError(f"{path}:{number}: has {1 + len(rest)} words: {FORM}")
        key, rate = _hash(rest[0].encode()), _rate(path, number, *rest[1:])
        if name in seen or key in seen:
            raise InvalidRequestError(f"{path}:{number}: the name {name!r}, or its key, is there twice")
        seen |= {name, key}
        yield key, Key(name, rate)


def _rate(path: Path, number: int, text: str = "") -> Bucket | None:
    """A second's requests may come at once."""
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not LEAST_RATE <= rate < math.inf:
        raise InvalidRequestError(f"{path}:{number}: {text!r} is no number of requests a second, {LEAST_RATE} or more")
    return Bucket(rate, max(1.0, rate))
