"""Memory that does not suffice, as a message that says which flags ask for less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size


class OutOfMemoryError(Exception):
    """An allocation failed; the message names the flags."""


@contextmanager
def naming_flags(*flags: str) -> Iterator[None]:
    """Turn an allocation that fails in the block into OutOfMemoryError, with what asks for less memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise OutOfMemoryError(f"out of memory ({reason}); what helps: {'; '.join(flags)}") from error
