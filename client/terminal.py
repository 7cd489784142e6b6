"""Text in columns of a terminal: wide characters take two, combining ones none."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """A space for each character that a terminal would act on instead of showing it."""
    return "".join(char if char.isprintable() else " " for char in text)


def columns(text: str) -> int:
    """How many columns a printable text takes."""
    return sum(_columns(char) for char in text)


def fitted(text: str, room: int) -> str:
    """The text in at most ``room`` columns, an ellipsis where it was cut."""
    if columns(text) <= room:
        return text
    kept, taken = "", 1  # the ellipsis
    for char in text:
        taken += _columns(char)
        if taken > room:
            break
        kept += char
    return kept + "…" if room > 0 else ""


def padded(text: str, room: int) -> str:
    """The text in exactly ``room`` columns."""
    text = fitted(text, room)
    return text + " " * (room - columns(text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
