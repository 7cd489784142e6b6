"""A command's flags, its exit code and its console."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import transformers
from rich.console import Console
from tqdm import tqdm
from transformers import HfArgumentParser

from client.errors import DisRankerError
from model_repository.tokenizer.pair_encoding import EncodingError
from trainer.checkpoints.load import CheckpointError
from trainer.training.memory import OutOfMemoryError
from trainer.training.resume import InterruptedRunError, NonFiniteLossError, ResumeError
from trainer.training.sharded import ShardingError


def parse(argv: Sequence[str] | None, *types: type) -> tuple[Any, ...]:
    """Dataclasses from command-line flags; ``--help`` lists them all."""
    parser = HfArgumentParser(types)  # type: ignore[arg-type]  # a tuple of dataclasses is what it documents
    return parser.parse_args_into_dataclasses(args=None if argv is None else list(argv))


def console_of(width: int) -> Console:
    """The terminal; where output goes elsewhere, lines of ``width`` characters, so that no table breaks."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def command(body: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Make an entry point of ``body(argv)``: its exit code is 0, 1 where training broke down, 2 for bad input
    (each with one line on standard error), or 128 and the number of the signal that stopped it."""

    @functools.wraps(body)
    def main(argv: Sequence[str] | None = None) -> int:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
        try:
            body(argv)
        except (DisRankerError, EncodingError, CheckpointError, ResumeError, ShardingError) as error:
            _complain(error)
            return 2
        except InterruptedRunError as error:
            tqdm.write(str(error), file=sys.stderr)
            return error.exit_code
        except (NonFiniteLossError, OutOfMemoryError) as error:
            _complain(error)
            return 1
        return 0

    return main


def _complain(error: Exception) -> None:
    tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, also under a progress bar
