"""The errors that a user of the project can meet. Every message says what to do, and names the server, if there is one.

The errors of trainer/, engines/ and bench/ derive from DisRankerError too. `client.command` prints any of them as one
line and returns its exit code.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from typing import Self


class DisRankerError(Exception):
    """The base of all errors of the project that are not bugs.

    ``exit_code`` is that of a command which the error ends.
    ``label`` stands before the message on standard error; "" prints the message only.
    """

    exit_code: int = 2
    label: str = "error"


Fault = Literal["", "late", "overloaded", "broken"]
EVERY = 2**31


class RankingError(DisRankerError):
    """Documents were not ranked. ``server`` is the one concerned, "" if none is.

    ``fault`` is the server's, "" if the request is at fault. It decides how the server stands aside.
    ``elsewhere`` limits how many other servers the call asks after this error.
    ``again`` says whether it also asks the same server another time.
    """

    fault: Fault = ""
    elsewhere: ClassVar[int] = 0
    again: ClassVar[bool] = False

    def __init__(self, message: str, server: str = "") -> None:
        super().__init__(message)
        self.server = server

    def reworded(self, message: str) -> Self:
        """The same error with another message."""
        other = copy.copy(self)
        other.args = (message,)
        return other


class InvalidRequestError(RankingError):
    """The request is at fault: no documents, an empty query, a document that is too large."""


class RequestTimeoutError(RankingError):
    """No answer came within the time limit of the call; never tried again, since its time is over."""

    fault = "late"


class ServerError(RankingError):
    """The server is at fault; another server, or a later call, may succeed."""

    fault: Fault = "broken"
    elsewhere = 1  # no more: a request that breaks one server would break the others, too


class ServerUnavailableError(ServerError):
    """Nothing answered at the address, or the connection was cut."""

    elsewhere = EVERY
    again = True


class ServerOverloadedError(ServerError):
    """Every server that was asked has too much to do. ``retry_after_s`` is the shortest wait that one asked for."""

    fault = "overloaded"

    def __init__(self, message: str, server: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, server)
        self.retry_after_s = retry_after_s


class ModelNotReadyError(ServerError):
    """The server lacks the model, its version, or the inputs and outputs of a ranker."""

    elsewhere = EVERY


class AuthenticationError(ServerError):
    """The server, or a proxy before it, refuses the authorization."""

    fault = ""
    elsewhere = 0


class InvalidAnswerError(ServerError):
    """The answer has scores that are not finite, or not one for each document."""

    fault = ""
    elsewhere = 0


UNKNOWN = ("NOT_FOUND", "UNIMPLEMENTED")
# Triton has one code for a server that has gone, one that is full and a model that is not there: only words differ.
# Triton's own queue drops a request when the caller's time is over, or its default, which may be far shorter.
EXPIRED = "Request timeout expired"
OVERLOADED = ("Exceeds maximum queue size", EXPIRED)
RETRY_IN, LONGEST_WAIT_S = re.compile(r"retry in (\d+(?:\.\d+)?(?:e[+-]?\d+)?) s\b"), 3600.0
LATE = "past its deadline"  # as our scorers say it
UNSERVED = ("unknown model", "is not ready", "is not found", "has no available versions", "not ready for inference")
NO_MEMORY = ("shared memory pool", "shared memory region")  # which Triton cannot make or enlarge
OTHER_MODEL = (
    "unexpected inference input", "inputs but model", "missing required input", "unexpected shape for input",
    "unexpected datatype",
)  # fmt: skip


def translated(
    error: InferenceServerException, server: str, model: str, timeout_s: float, over: bool = False
) -> RankingError:
    """The exception of a failed call, by gRPC's code, Triton's words, and whether the call's time is ``over``.

    What follows from it is in its class.
    """
    status, message = status_of(error), str(error.message()).strip()
    served = f"the server at {server} does not serve the model {model!r}"
    late = LATE in message or (over and EXPIRED in message)
    if status == "DEADLINE_EXCEEDED" or (status == "UNAVAILABLE" and late):
        return RequestTimeoutError(f"{server} gave no answer within {timeout_s:.3g} s: raise the time limit", server)
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "protocol is restricted" in message:
        return AuthenticationError(f"{server} refuses the authorisation ({message}): see `authorization`", server)
    if status == "UNAVAILABLE" and ((told := RETRY_IN.search(message)) or _holds(message, OVERLOADED)):
        wait = (min(float(told[1]), LONGEST_WAIT_S),) if told else ()
        return ServerOverloadedError(f"{server} is overloaded: {message}", server, *wait)
    if status == "RESOURCE_EXHAUSTED" and "larger than" in message:
        return InvalidRequestError(f"{server} takes no such message ({message}): lower `max_documents`", server)
    if status == "RESOURCE_EXHAUSTED":
        return ServerOverloadedError(f"{server} is overloaded: {message}", server)
    if status in UNKNOWN or _holds(message, UNSERVED):
        return ModelNotReadyError(f"{served}: {message}: start it with this model, or name another", server)
    if status == "INVALID_ARGUMENT" and _holds(message, OTHER_MODEL):
        return ModelNotReadyError(f"{served} as a ranker: {message}: name an ensemble of ours", server)
    if status == "INVALID_ARGUMENT":
        reason = message.removeprefix(f"in ensemble {model!r}, ")
        return InvalidRequestError(f"{server} refused the request: {reason}", server)
    if status == "UNAVAILABLE":
        return ServerUnavailableError(
            f"no server answers at {server}: start it, or name its gRPC port ({message})", server
        )
    if _holds(message, NO_MEMORY):
        return ServerError(
            f"{server} has no room in /dev/shm for the request: give it more (docker run --shm-size=1g), or lower "
            f"`max_documents` ({message})",
            server,
        )
    return ServerError(f"{server}: {status}: {message}", server)


def status_of(error: InferenceServerException) -> str:
    status: Any = error.status()
    return str(status).removeprefix("StatusCode.")


def _holds(message: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in message.lower() for word in words)
