"""Too little memory, as an error that names the flags which need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from client.errors import DisRankerError


class OutOfMemoryError(DisRankerError):
    """An allocation failed; the message names the flags."""

    exit_code = 1


@contextmanager
def naming_flags(*flags: str) -> Iterator[None]:
    """Raise OutOfMemoryError, with what needs less memory, where an allocation in the block fails."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise OutOfMemoryError(f"out of memory ({reason}); what helps: {'; '.join(flags)}") from error
