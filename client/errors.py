"""Whatever keeps documents from being ranked. Every message names the server and says what to do."""

from __future__ import annotations

from typing import Any

from tritonclient.utils import InferenceServerException


class RankingError(Exception):
    """The parent of all; ``server`` is the one concerned, "" if none is."""

    def __init__(self, message: str, server: str = "") -> None:
        super().__init__(message)
        self.server = server


class InvalidRequestError(RankingError):
    """The request is at fault: no documents, an empty query, a document that is too large."""


class RequestTimeoutError(RankingError):
    """No answer within the time limit of the call. Not tried again: the server may be at it still."""


class ServerError(RankingError):
    """The server's side; another one, or a later call, may do better."""


class ServerUnavailableError(ServerError):
    """Nothing answers at the address, or the connection was cut, at every attempt."""


class ServerOverloadedError(ServerError):
    """It answers that too much waits already, at every attempt."""


class ModelNotReadyError(ServerError):
    """It answers and does not serve the model, its version, or one with the inputs and outputs of a ranker."""


class AuthenticationError(ServerError):
    """It, or a proxy before it, refuses the authorisation."""


class InvalidAnswerError(ServerError):
    """Scores that are not finite, or not one for each document."""


UNKNOWN = ("NOT_FOUND", "UNIMPLEMENTED")
# Triton has one code for a server that has gone, one that is full and a model that is not there: only words differ.
OVERLOADED = ("rows wait for the engine", "Exceeds maximum queue size")
UNSERVED = ("unknown model", "is not ready", "is not found", "has no available versions", "not ready for inference")
OTHER_MODEL = ("unexpected inference input", "inputs but model", "unexpected shape for input", "unexpected datatype")


def translated(error: InferenceServerException, server: str, model: str, timeout_s: float) -> RankingError:
    """The exception of a failed call, by gRPC's code and Triton's words."""
    status, message = status_of(error), str(error.message()).strip()
    served = f"the server at {server} does not serve the model {model!r}"
    if status == "DEADLINE_EXCEEDED":
        return RequestTimeoutError(f"{server} gave no answer within {timeout_s:.3g} s: raise the time limit", server)
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return AuthenticationError(f"{server} refuses the authorisation ({message}): see `authorization`", server)
    if status == "UNAVAILABLE" and _holds(message, OVERLOADED):
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
    return ServerError(f"{server}: {status}: {message}", server)


def status_of(error: InferenceServerException) -> str:
    status: Any = error.status()
    return str(status).removeprefix("StatusCode.")


def _holds(message: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in message.lower() for word in words)
