"""The error of the embedded server, in a file of its own since all others raise it."""

from __future__ import annotations


class EmbeddedTritonError(Exception):
    """The server cannot start; the message says how to mend it."""
