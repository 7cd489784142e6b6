"""Where requests spent their time, by Triton's statistics before and after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from client.connection import Connection
from client.errors import translated
from client.outputs import padded
from client.wire import LIMIT, steps

PATIENCE_S, LOOK_AGAIN_S = 1.0, 0.02
NAME_COLUMNS = 26


@dataclass(frozen=True)
class Spent:
    """Requests, and the nanoseconds that they spent in all; ``total`` is from their arrival to their answer."""

    requests: int = 0
    total: int = 0
    queue: int = 0
    input: int = 0
    infer: int = 0
    output: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Spent)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(Spent)))


class Explainer:
    """Statistics of a connection's servers since this object was made. Every call may raise a RankingError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers = [(name, InferenceServerClient(name, **connection.channel())) for name in connection.servers]
        config = self._asked(*self._servers[0], "get_model_config", connection.model, connection.version)["config"]
        self._steps = steps(config)
        self._threaded = [step for step in self._steps if self._answers_later(step)]
        self._before = self._spent()

    def close(self) -> None:
        for _, server in self._servers:
            server.close()

    def lines(self, requests: int, seconds: float, in_flight: int = 1) -> Iterator[str]:
        """A table of means of a request in ms, after ``requests`` requests to the servers in ``seconds``."""
        since = self._since(requests)
        ensemble = since[self._connection.model]
        yield (
            f"{requests} request{'s' * (requests != 1)} to {self._connection.model} at "
            f"{', '.join(self._connection.servers)}, {in_flight} at a time; means of a request in ms:"
        )
        yield f"{'':{NAME_COLUMNS}}{'total':>9}{'queue':>9}{'input':>9}{'infer':>9}{'output':>9}"
        if requests == 1:
            yield _row("client", seconds * 1e3)
            if ensemble.requests == 1:
                yield _row("  network, serialisation", _left(seconds * 1e3, ensemble.total / 1e6))
        else:
            yield f"{padded('client, all requests', NAME_COLUMNS)}{seconds * 1e3:9.2f}"
        yield _row(f"  {self._connection.model}", _mean(ensemble, "total"))
        for step in self._steps:
            values = [_mean(since[step], name) for name in ("total", "queue", "input", "infer", "output")]
            yield _row(f"    {step}", *values)
        rest = _left(_mean(ensemble, "total"), *(_mean(since[step], "total") for step in self._steps))
        yield _row(f"    {self._rest_name()}", rest)
        yield from self._notes(since, requests)

    def _rest_name(self) -> str:
        return f"{self._threaded[0]}'s engine" if self._threaded else "between the steps"

    def _notes(self, since: dict[str, Spent], requests: int) -> Iterator[str]:
        for step in self._threaded:
            yield (
                f"{step} answers from threads of its own: its engine's time, and waiting for it, are what the steps "
                f"leave of {self._connection.model}"
            )
        others = max(spent.requests for spent in since.values()) - requests
        if others > 0:
            yield f"requests of other clients in these figures of the server: {others}; ask again when there are none"
        if others < 0:
            yield f"requests that the servers' statistics do not have: {-others}"

    def _answers_later(self, step: str) -> bool:
        """A student of the Python backend hands its pairs to a thread; Triton's clock stops before they are scored."""
        config = self._asked(*self._servers[0], "get_model_config", step)["config"]
        return bool(config.get("backend") == "python" and LIMIT in config.get("parameters", {}))

    def _since(self, requests: int) -> dict[str, Spent]:
        """Triton counts a request after its answer, therefore this may have to wait for the last one."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            now = self._spent()
            since = {name: now[name] - self._before[name] for name in now}
            if min(spent.requests for spent in since.values()) >= requests or time.monotonic() > ends:
                return since
            time.sleep(LOOK_AGAIN_S)

    def _spent(self) -> dict[str, Spent]:
        spent = dict.fromkeys([self._connection.model, *self._steps], Spent())
        for server in self._servers:
            for model in spent:
                answer = self._asked(*server, "get_inference_statistics", model)
                for version in answer.get("model_stats", []):
                    spent[model] += _of(version.get("inference_stats", {}))
        return spent

    def _asked(self, name: str, server: InferenceServerClient, method: str, *arguments: str) -> dict[str, Any]:
        settings = self._connection
        try:
            answer: dict[str, Any] = getattr(server, method)(
                *arguments, headers=settings.headers, as_json=True, client_timeout=settings.timeout_s
            )
        except InferenceServerException as error:
            raise translated(error, name, settings.model, settings.timeout_s) from error
        return answer


def _of(statistics: dict[str, Any]) -> Spent:
    # int64 comes as text, and what is 0 not at all.
    def nanoseconds(kind: str) -> int:
        return int(statistics.get(kind, {}).get("ns", 0))

    return Spent(
        int(statistics.get("success", {}).get("count", 0)),
        nanoseconds("success"),
        nanoseconds("queue"),
        nanoseconds("compute_input"),
        nanoseconds("compute_infer"),
        nanoseconds("compute_output"),
    )


def _mean(spent: Spent, name: str) -> float:
    nanoseconds: int = getattr(spent, name)
    return nanoseconds / max(spent.requests, 1) / 1e6


def _left(total: float, *parts: float) -> float:
    # Triton's clock of a request stops when it has cleaned up after the answer, which may have arrived by then.
    return max(0.0, total - sum(parts))


def _row(name: str, *milliseconds: float) -> str:
    return padded(name, NAME_COLUMNS) + "".join(f"{value:9.2f}" for value in milliseconds)
