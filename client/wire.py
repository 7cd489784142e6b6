"""A ranking request as tensors, and the scores of an answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as grpc

from client.connection import Connection
from client.errors import InvalidAnswerError, InvalidRequestError, ModelNotReadyError, RankingError
from client.records import AT_END, Document, DocumentLike, Scores, Truncation, as_document

NO_LIMIT = 2**31
INPUTS, OUTPUTS = ("QUERY", "TITLES", "SUMMARIES"), ("SCORES", "TRUNCATED")
LIMIT = "max_documents"  # the scorer's parameter
REQUEST_ID = "x-request-id"
# Headers of requests to the server beside the connection's. That of a request's id is Triton's own id of it, too.
METADATA: ContextVar[Mapping[str, str]] = ContextVar("metadata", default=MappingProxyType({}))
# Outputs of a server that tells where a request's time went, in ms by part.
PARTS = {
    "TOKENIZER_MS": ("cache", "tokenising", "rest"),
    "STUDENT_MS": ("intake", "waiting", "layout", "engine", "answer"),
}
Times = dict[str, dict[str, float]]  # the parts by output; without those of a server of another release
# The times of each request that is answered, as long as somebody collects them.
TIMES: ContextVar[list[Times] | None] = ContextVar("times", default=None)
PROBE = "probe", [Document(title="probe")]  # a server is asked this to see whether it scores


def checked(query: str, documents: Iterable[DocumentLike], top_k: int | None = None) -> list[Document]:
    """The documents as records. Raises InvalidRequestError for what no server would take."""
    if top_k is not None and top_k < 1:
        raise InvalidRequestError(f"top_k must be at least 1, not {top_k}")
    if not isinstance(query, str):
        raise InvalidRequestError(f"the query must be a string, not {type(query).__name__}")
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InvalidRequestError(f"documents must be a list of documents, not one {type(documents).__name__}")
    candidates = [_numbered(number, item) for number, item in enumerate(documents)]
    if not candidates:
        raise InvalidRequestError("no documents: a request has at least one")
    return candidates


def _numbered(number: int, item: DocumentLike) -> Document:
    try:
        return as_document(item)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"document {number}: {error}") from error


def parts(documents: Sequence[Document], limit: int) -> list[slice]:
    """Slices of nearly equal size, none above ``limit``."""
    count = -(-len(documents) // limit)
    edges = [len(documents) * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


class Inputs(NamedTuple):
    """The tensors of a request, and parameters that the tokenizer reads."""

    tensors: list[grpc.InferInput]
    parameters: dict[str, int | str]


def request(settings: Connection, inputs: Inputs, left_s: float) -> dict[str, Any]:
    """The arguments of tritonclient's infer. The server is told how long the answer is waited for."""
    left_s, metadata = max(left_s, 1e-4), METADATA.get()
    wanted = {} if TIMES.get() is None else {"times": True}
    return {
        "model_name": settings.model,
        "model_version": settings.version,
        "inputs": inputs.tensors,
        "headers": {**(settings.headers or {}), **metadata} or None,
        "request_id": metadata.get(REQUEST_ID, ""),
        "priority": settings.priority,
        # Triton's queues read the one priority, our models the other.
        "parameters": {"priority_level": settings.priority, **inputs.parameters, **wanted},
        "timeout": int(left_s * 1e6),
        "client_timeout": left_s,
    }


def inputs(query: str, documents: Sequence[Document], truncation: Truncation = AT_END) -> Inputs:
    tensors = [
        _strings("QUERY", [query]),
        _strings("TITLES", [document.title for document in documents]),
        _strings("SUMMARIES", [document.summary for document in documents]),
    ]
    parameters: dict[str, int | str] = {}
    if truncation.max_tokens is not None:
        parameters["max_document_tokens"] = truncation.max_tokens
    if truncation.side != AT_END.side:
        parameters["truncation_side"] = truncation.side
    return Inputs(tensors, parameters)


def scores(result: Any, documents: int, server: str) -> Scores:
    """Read the scores of tritonclient's answer. Raises InvalidAnswerError for scores that cannot rank."""
    logits, truncated = (result.as_numpy(name) for name in OUTPUTS)
    for name, tensor in zip(OUTPUTS, (logits, truncated), strict=True):
        shape = None if tensor is None else tensor.shape
        if shape != (documents,):
            raise InvalidAnswerError(
                f"{server} answered {documents} documents with {name} of shape {shape}: is the model a ranker?", server
            )
    finite = np.isfinite(logits)
    if not finite.all():
        first = int(np.argmin(finite))
        raise InvalidAnswerError(
            f"{server} scored document {first} with {logits[first]} ({documents - finite.sum()} of {documents} are not "
            "finite): see its engine, which may overflow in its precision",
            server,
        )
    return Scores(logits.astype(np.float32, copy=False), truncated.astype(np.bool_, copy=False))


def collect_times(result: Any) -> None:
    """Keep what tritonclient's answer says of its request's time, if somebody collects it."""
    if (collected := TIMES.get()) is not None:
        told = ((name, parts, result.as_numpy(name)) for name, parts in PARTS.items())
        # Another release may have none, or other parts.
        known = ((name, parts, ms) for name, parts, ms in told if ms is not None and ms.shape == (len(parts),))
        collected.append({name: dict(zip(parts, ms.tolist(), strict=True)) for name, parts, ms in known})


def mean_times(told: Sequence[Times]) -> Times:
    """The means over the requests that told their times, which have the same parts."""
    means: Times = {}
    for name, parts in PARTS.items():
        if known := [times[name] for times in told if name in times]:
            means[name] = {part: sum(times[part] for times in known) / len(known) for part in parts}
    return means


def joined(pieces: Sequence[Scores]) -> Scores:
    return Scores(np.concatenate([piece.logits for piece in pieces]), np.concatenate([p.truncated for p in pieces]))


def of_part(error: RankingError, part: slice) -> RankingError:
    """The error of a part of a request, whose documents the server counts from 0."""
    return error.reworded(f"of documents {part.start} to {part.stop - 1}, counted from 0 here: {error}")


def check_ranker(config: dict[str, Any], model: str, server: str) -> None:
    """Raises ModelNotReadyError for a model that takes or gives other tensors than a ranker does."""
    taken = {tensor["name"] for tensor in config.get("input", [])}
    given = {tensor["name"] for tensor in config.get("output", [])}
    if taken != set(INPUTS) or not set(OUTPUTS) <= given:
        raise ModelNotReadyError(
            f"the model {model!r} of the server at {server} is no ranker: it takes {_named(taken)} and gives "
            f"{_named(given)}, a ranker takes {', '.join(INPUTS)}: name an ensemble of ours, such as ranker",
            server,
        )


def steps(config: dict[str, Any]) -> list[str]:
    """The models that an ensemble is made of."""
    return [step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])]


def limit(configs: Iterable[dict[str, Any]]) -> int:
    """Documents that a request may have, which the ensemble's scorer tells; without it any number."""
    told = [config["parameters"][LIMIT]["string_value"] for config in configs if LIMIT in config.get("parameters", {})]
    return min(map(int, told), default=NO_LIMIT)


def _named(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _strings(name: str, texts: Sequence[str]) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([encoded(text) for text in texts], dtype=np.object_))
    return tensor


def encoded(text: str) -> bytes:
    """The text in UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Lone surrogates, which JSON can spell and UTF-8 cannot, are replaced as they are in training.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
