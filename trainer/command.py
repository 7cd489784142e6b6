"""A command's flags, its end and its console."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import transformers
from rich.console import Console
from transformers import HfArgumentParser

import client.command


def parse(argv: Sequence[str] | None, *types: type) -> tuple[Any, ...]:
    """Dataclasses from command-line flags; ``--help`` lists them all."""
    parser = HfArgumentParser(types)  # type: ignore[arg-type]  # a tuple of dataclasses is what it documents
    return parser.parse_args_into_dataclasses(args=None if argv is None else list(argv))


def console_of(width: int) -> Console:
    """The terminal; where output goes elsewhere, lines of ``width`` characters, so that no table breaks."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def command(body: Callable[[Sequence[str] | None], None]) -> client.command.Main:
    """Make an entry point of ``body(argv)`` as ``client.command`` does, without transformers' own messages."""

    @functools.wraps(body)
    def quiet(argv: Sequence[str] | None = None) -> None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
        body(argv)

    return client.command.command(quiet)
