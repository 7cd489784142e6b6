"""Queries that are nearly the same: sets of the words' character trigrams of which most are common to both.

Source: Broder 1997, "On the resemblance and containment of documents".
"""

from __future__ import annotations

import re
import unicodedata

RESEMBLANCE = 0.8
SIZE = 3


def trigrams(query: str) -> frozenset[str]:
    """The trigrams of each word with a space to both sides, without case; the order of words does not count."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", query).casefold())
    return frozenset(f" {word} "[place : place + SIZE] for word in words for place in range(len(word)))
