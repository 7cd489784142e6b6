"""Ask a server for one score. Triton 2.51 says that it is ready while the processes of its models are dead.

python -m client.probe localhost:8001 --deadline 1.0
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from enum import Enum
from typing import Any, NamedTuple

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from client import wire
from client.command import command, say
from client.connection import LONGEST_S, Connection
from client.errors import (
    InvalidAnswerError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingError,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
    status_of,
    translated,
)
from client.flags import add_access_flags, connection_of

# NVIDIA's bulletin 5687 (August 2025): before 2.59.1 a stranger can take a server over through shared memory.
SAFE = (2, 59, 1)


class Verdict(Enum):
    """How a server took the request."""

    SCORED = "scored"
    BUSY = "refused for overload"
    ABSENT = "without the model"
    BROKEN = "failed"
    SILENT = "gave no answer in time"
    GONE = "unreachable"


# A server that sheds load stays in the balancing: its refusals are quick, and of servers that are all full none would
# be left. A restart brings back no model that is not there, and makes no busy server faster.
READY = {Verdict.SCORED, Verdict.BUSY}
ALIVE = {*READY, Verdict.ABSENT}
BY_ERROR: dict[type[RankingError], Verdict] = {
    ServerOverloadedError: Verdict.BUSY,
    ModelNotReadyError: Verdict.ABSENT,
    RequestTimeoutError: Verdict.SILENT,
    ServerUnavailableError: Verdict.GONE,
    InvalidAnswerError: Verdict.BROKEN,
    ServerError: Verdict.BROKEN,
}


class Answer(NamedTuple):
    """``verdict``, and a line for people."""

    verdict: Verdict
    words: str


def probe(connection: Connection) -> Answer:
    """Ask the first server for one score within ``timeout_s``.

    Raises RankingError where the question is at fault: the model is no ranker, or the server refuses the authorization.
    """
    server, limit_s = connection.servers[0], connection.timeout_s
    with closing(grpc.InferenceServerClient(**connection.channel(server))) as client:
        start = time.perf_counter()
        try:
            result = client.infer(**wire.request(connection, wire.inputs(*wire.PROBE), limit_s))
            wire.scores(result, 1, server)
        except InferenceServerException as error:
            return _failure(error, connection)
        except InvalidAnswerError as error:
            return Answer(Verdict.BROKEN, str(error))
        return Answer(
            Verdict.SCORED, f"{connection.model} at {server} scored in {1000 * (time.perf_counter() - start):.1f} ms"
        )


def _failure(error: InferenceServerException, connection: Connection) -> Answer:
    meaning = translated(error, connection.servers[0], connection.model, connection.timeout_s)
    verdict = BY_ERROR.get(type(meaning))
    if verdict is Verdict.SILENT and status_of(error) == "UNAVAILABLE":  # it says itself that the time is over
        return Answer(Verdict.BUSY, f"{connection.model} at {connection.servers[0]} is overloaded: {error.message()}")
    if verdict is None or status_of(error) == "INVALID_ARGUMENT":
        raise meaning
    return Answer(verdict, str(meaning))


@command
def main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes:\n  0    it scored, or refused for overload\n  1    it does not score; one line says why\n"
        "  2    bad flags, a model that is no ranker, or an authorization that is refused",
    )
    parser.add_argument("servers", nargs=1, metavar="HOST:PORT", help="the server's gRPC port")
    parser.add_argument("--model", default="ranker", help="default %(default)s")
    parser.add_argument("--deadline", type=float, default=1.0, metavar="S", help="seconds (default %(default)s)")
    parser.add_argument(
        "--alive", action="store_true", help="fail only where a restart helps: a server that lacks the model passes"
    )
    add_access_flags(parser)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.deadline <= LONGEST_S:  # nor NaN
        raise InvalidRequestError(f"--deadline must be above 0 and at most {LONGEST_S:g}, not {arguments.deadline:g}")
    connection = connection_of(
        argparse.Namespace(**vars(arguments), url=arguments.servers, timeout=arguments.deadline, version="")
    )
    answer = probe(connection)
    good, what = (ALIVE, "alive") if arguments.alive else (READY, "ready")
    if answer.verdict not in good:
        say(f"not {what}: {answer.words}")
        return 1
    print(f"{what}: {answer.words}")
    _warn_of_age(connection)
    return 0


def _warn_of_age(connection: Connection) -> None:
    """Say if the server's release has holes that are known; one that keeps its version to itself is left alone."""
    metadata: Any = None
    client = grpc.InferenceServerClient(**connection.channel(connection.servers[0]))
    with closing(client), suppress(InferenceServerException):
        metadata = client.get_server_metadata(connection.headers, client_timeout=connection.timeout_s)
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", metadata.version if metadata else "")
    if found and tuple(map(int, found.groups())) < SAFE:
        oldest = ".".join(map(str, SAFE))
        say(f"warning: Triton {found[0]} has known security holes, closed in {oldest}: let no other machine reach it")


if __name__ == "__main__":
    sys.exit(main())
