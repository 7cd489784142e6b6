"""64 bits that stand for ids, where millions of them must be in memory."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np


def identity(*names: str) -> int:
    """The 64 bits of a query id, or of a query id and a document id."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "little")


def repeated(identities: array[int]) -> set[int]:
    """Those that come more than once."""
    values, counts = np.unique(np.frombuffer(identities, dtype=np.uint64), return_counts=True)
    return set(values[counts > 1].tolist())
