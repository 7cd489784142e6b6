"""What keeps the embedded server from starting."""

from __future__ import annotations


class EmbeddedTritonError(Exception):
    """The server cannot start; the message says how to mend it."""
