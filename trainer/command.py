"""A command's flags, its end and its console."""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import transformers
from rich.console import Console
from transformers import HfArgumentParser

import client.command
from client.errors import DisRankerError
from trainer.addresses import naming_addresses
from trainer.storage import localised


class FlagError(DisRankerError):
    """A command line that the command does not take."""


class Parser(HfArgumentParser):
    """Takes whole names of flags only, and raises FlagError instead of printing all flags there are."""

    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


def parse(argv: Sequence[str] | None, *types: type, far: Iterable[str] = ()) -> tuple[Any, ...]:
    """Dataclasses from command-line flags; ``--help`` lists them all.

    Addresses in object stores become paths, but for those of the flags ``far``. Raises StoreError for what a store
    refuses, FlagError for an unknown flag, and for whatever the dataclasses refuse when they are made: most checks are
    those of transformers' TrainingArguments.
    """
    parser = Parser(types, allow_abbrev=False)  # type: ignore[arg-type]  # a tuple of dataclasses is what it documents
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = [argument.partition("=")[0] for argument in argv if argument.startswith("--")]
    _refuse([flag for flag in flags if flag not in parser._option_string_actions], parser)  # before one that is missing
    argv = localised(argv, far)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except DisRankerError:
        raise
    except Exception as error:
        raise FlagError(" ".join(str(error).split())) from error
    _refuse(unknown, parser)
    return tuple(parsed)


def _refuse(unknown: Sequence[str], parser: Parser) -> None:
    if unknown:
        near = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise FlagError(f"{unknown[0]!r} is no flag" + (f": is {near[0]} meant?" if near else "; --help lists them"))


def console_of(width: int) -> Console:
    """The terminal; where output goes elsewhere, lines of ``width`` characters, so that no table breaks."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def command(body: Callable[[Sequence[str] | None], None]) -> client.command.Main:
    """Make an entry point of ``body(argv)`` as ``client.command`` does, without the own messages of transformers and
    of the hub's client."""

    @functools.wraps(body)
    def quietly(argv: Sequence[str] | None = None) -> None:
        quiet()
        with naming_addresses():
            body(argv)

    return client.command.command(quietly)


def quiet() -> None:
    """Silence what transformers and the hub's client say of themselves."""
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
