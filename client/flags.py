"""The flags with which a command names its servers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from client.connection import Connection

AUTHORIZATION = "DISRANKER_AUTHORIZATION"
PEM_FILES = {
    "root_certificates": "authorities that the server's certificate is checked by; default: the system's",
    "certificate_chain": "the client's certificate, for a server that asks for one",
    "private_key": "the key of the client's certificate",
}
EXIT_CODES = """exit codes:
  0    all is well{}
  2    bad input, or a server that refuses or does not answer; one line on standard error says what to do
  130  Ctrl-C"""


def add_server_flags(parser: argparse.ArgumentParser, *, target: bool = True) -> None:
    """Add the flags that ``connection_of`` reads; without ``target``, not those of the server and the model."""
    group = parser.add_argument_group("the server")
    parser.set_defaults(url=None, model="ranker", version="")
    if target:
        group.add_argument(
            "--url",
            action="append",
            metavar="HOST:PORT",
            help="a server's gRPC port (default localhost:8001); several, by commas or repeated flags, share the work",
        )
        group.add_argument("--model", default="ranker", help="default %(default)s")
        group.add_argument("--version", default="", help="the model's version; default: the server's choice")
    group.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds a query (default %(default)s)")
    add_access_flags(group)


def add_access_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags by which a server lets a client in."""
    group.add_argument("--tls", action="store_true", help="encrypt, and check the server's certificate")
    for name, words in PEM_FILES.items():
        group.add_argument(f"--{name}", type=Path, metavar="PEM", help=words)
    group.add_argument(
        "--authorization",
        help=f"value of the authorization header; better in the environment as {AUTHORIZATION}, since the list of "
        "processes shows flags",
    )


def connection_of(arguments: argparse.Namespace) -> Connection:
    """Settings from the flags. Raises InvalidRequestError for those that make no sense."""
    return Connection(
        tuple(one.strip() for url in arguments.url or ["localhost:8001"] for one in url.split(",")),
        arguments.model,
        arguments.version,
        arguments.timeout,
        tls=arguments.tls,
        authorization=arguments.authorization or os.environ.get(AUTHORIZATION) or None,
        **{name: getattr(arguments, name) for name in PEM_FILES},
    )
