"""How a command of the project ends: its exit code, and one line on standard error for what a user can mend."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

GOOD, INTERRUPTED, READER_LEFT = 0, 130, 141  # 128 and the number of the signal, as shells have it


class Main(Protocol):
    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(body: Callable[[Sequence[str] | None], int | None]) -> Main:
    """Make an entry point of ``body(argv)``.

    Its exit code is the body's, 0 for None. An exception with an ``exit_code``, as every DisRankerError has, becomes
    one line on standard error and that code. Ctrl-C is 130, a reader of standard output that left (``| head``) 141,
    both without a word. Any other exception is a bug and stays a traceback.
    """

    @functools.wraps(body)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return body(argv) or GOOD
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            if not reader_left():
                raise
            return READER_LEFT
        except Exception as error:
            # By the attribute, not the class: what Triton loads raises errors that cannot import ours.
            exit_code = getattr(error, "exit_code", None)
            if not isinstance(exit_code, int):
                raise
            label = getattr(error, "label", "error")
            say(f"{label}: {error}" if label else str(error))
            return exit_code

    return main


def say(line: str) -> None:
    """Print a line on standard error. It does not break a bar of tqdm, which has been imported if there is one."""
    if tqdm := sys.modules.get("tqdm"):
        tqdm.tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def reader_left() -> bool:
    """Whether nobody reads standard output any more; what is written from then on is dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    return True
