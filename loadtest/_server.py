"""The queue and compute times inside the servers, by Triton's statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from client.connection import Connection
from client.statistics import STEPS, Spent, spent_by_model
from loadtest._records import ModelTimes

PATIENCE_S = 5.0


class Statistics:
    """The sums over ``servers``. The first failure is noted, and no times are asked after it."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._servers, self.note = servers, ""

    def look(self) -> Mapping[str, Spent]:
        try:
            return spent_by_model([_asked(server) for server in self._servers] if not self.note else [])
        except InferenceServerException as error:
            self.note = f"no statistics of the models: {error.message()}"
            return {}

    def versions(self) -> Mapping[str, str]:
        """By server, Triton's version and those of its models, of those that tell them."""
        found = {}
        for server in self._servers:
            with suppress(InferenceServerException):
                found[server] = _versions(server)
        return found


def _connected(server: str) -> InferenceServerClient:
    return InferenceServerClient(**Connection().channel(server))


def _asked(server: str) -> dict[str, Any]:
    with _connected(server) as client:
        answer: dict[str, Any] = client.get_inference_statistics(as_json=True, client_timeout=PATIENCE_S)
        return answer


def _versions(server: str) -> str:
    with _connected(server) as client:
        triton = client.get_server_metadata(as_json=True, client_timeout=PATIENCE_S)
    models = ", ".join(f"{one['name']} {one['version']}" for one in _asked(server).get("model_stats", []))
    return f"{triton['name']} {triton['version']} with {models or 'no model'}"


def between(before: Mapping[str, Spent], after: Mapping[str, Spent]) -> tuple[ModelTimes, ...]:
    """Means over the requests between two looks, for the models that answered any."""
    grown = {model: after[model] - before.get(model, Counter()) for model in sorted(after)}
    return tuple(
        ModelTimes(
            model=model,
            requests=spent["requests"],
            queue_ms=spent["queue"] / spent["requests"] / 1e6,
            compute_ms=sum(spent[kind] for kind in STEPS[1:]) / spent["requests"] / 1e6,
            requests_per_batch=spent["requests"] / (spent["executions"] or spent["requests"]),  # an ensemble has none
        )
        for model, spent in grown.items()
        if spent["requests"]
    )
