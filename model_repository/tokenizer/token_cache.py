"""Token ids of the documents that were asked for last, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from sys import getsizeof

KEY_BYTES = 32  # as many as SHA-256 has: no two texts with the same key will ever be found
# What an entry of an OrderedDict takes beside its key and its value: 75 to 114 were measured, as its table fills.
ENTRY_BYTES = 120


class TokenCache:
    """A document's text to its token ids, the least recently used going first.

    Values are the bytes of an array, which take a third of the memory of the array itself. ``lookups``
    and ``hits`` count documents since the start, ``bytes`` is what the entries take now, all told.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.lookups = self.hits = self.bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, texts: Sequence[bytes], tokenise: Callable[[list[int]], Sequence[bytes]]) -> list[bytes]:
        """The ids of each text. ``tokenise`` makes those of the texts at the places that it is given, which
        are not held; a text that is there twice is asked for once. What it raises leaves the cache as it was."""
        keys = [blake2b(text, digest_size=KEY_BYTES).digest() for text in texts]
        held = {key: self._entries[key] for key in keys if key in self._entries}
        places: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in held:
                places.setdefault(key, place)
        made = dict(zip(places, tokenise([*places.values()]), strict=True)) if places else {}
        self.lookups += len(keys)
        self.hits += len(keys) - len(made)
        for key in held:
            self._entries.move_to_end(key)
        for key, ids in made.items():
            self._add(key, ids)
        ids_of = {**held, **made}
        return [ids_of[key] for key in keys]

    def _add(self, key: bytes, ids: bytes) -> None:
        self._entries[key] = ids
        self.bytes += _size(key, ids)
        while self.bytes > self.capacity_bytes:
            self.bytes -= _size(*self._entries.popitem(last=False))


def _size(key: bytes, ids: bytes) -> int:
    return getsizeof(key) + getsizeof(ids) + ENTRY_BYTES
