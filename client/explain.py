"""Where requests spent their time, by Triton's statistics before and after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from client.connection import Connection
from client.errors import translated
from client.outputs import padded
from client.statistics import STEPS, TOTAL, Spent, spent_by_model
from client.wire import LIMIT, steps

PATIENCE_S, LOOK_AGAIN_S = 1.0, 0.02
NAME_COLUMNS = 26


class Explainer:
    """Statistics of a connection's servers since this object was made. Every call may raise a RankingError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers = [(name, InferenceServerClient(**connection.channel(name))) for name in connection.servers]
        self._steps = steps(self._config(connection.model, connection.version))
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
        yield _row("client" if requests == 1 else "client, all requests", seconds * 1e3)
        if requests == ensemble["requests"] == 1:
            yield _row("  network, serialisation", _left(seconds * 1e3, ensemble[TOTAL] / 1e6))
        yield _row(f"  {self._connection.model}", _mean(ensemble, TOTAL))
        for step in self._steps:
            yield _row(f"    {step}", *(_mean(since[step], kind) for kind in (TOTAL, *STEPS)))
        rest = _left(_mean(ensemble, TOTAL), *(_mean(since[step], TOTAL) for step in self._steps))
        yield _row(f"    {self._threaded[0]}'s engine" if self._threaded else "    between the steps", rest)
        yield from self._notes(since, requests)

    def _notes(self, since: dict[str, Spent], requests: int) -> Iterator[str]:
        for step in self._threaded:
            yield (
                f"{step} answers from threads of its own: its engine's time, and waiting for it, are what the steps "
                f"leave of {self._connection.model}"
            )
        others = max(spent["requests"] for spent in since.values()) - requests
        if others > 0:
            yield f"requests of other clients in these figures of the server: {others}; ask again when there are none"
        if others < 0:
            yield f"requests that the servers' statistics do not have: {-others}"

    def _answers_later(self, step: str) -> bool:
        """A student of the Python backend hands its pairs to a thread; Triton's clock stops before they are scored."""
        config = self._config(step)
        return bool(config.get("backend") == "python" and LIMIT in config.get("parameters", {}))

    def _since(self, requests: int) -> dict[str, Spent]:
        """Triton counts a request after its answer, therefore this may have to wait for the last one."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            now = self._spent()
            since = {name: now[name] - self._before[name] for name in (self._connection.model, *self._steps)}
            if min(spent["requests"] for spent in since.values()) >= requests or time.monotonic() > ends:
                return since
            time.sleep(LOOK_AGAIN_S)

    def _spent(self) -> dict[str, Spent]:
        return spent_by_model(self._asked(*server, "get_inference_statistics") for server in self._servers)

    def _config(self, model: str, version: str = "") -> dict[str, Any]:
        config: dict[str, Any] = self._asked(*self._servers[0], "get_model_config", model, version)["config"]
        return config

    def _asked(self, name: str, server: InferenceServerClient, method: str, *arguments: str) -> dict[str, Any]:
        settings = self._connection
        try:
            answer: dict[str, Any] = getattr(server, method)(
                *arguments, headers=settings.headers, as_json=True, client_timeout=settings.timeout_s
            )
        except InferenceServerException as error:
            raise translated(error, name, settings.model, settings.timeout_s) from error
        return answer


def _mean(spent: Spent, kind: str) -> float:
    return spent[kind] / max(spent["requests"], 1) / 1e6


def _left(total: float, *parts: float) -> float:
    # Triton's clock of a request stops when it has cleaned up after the answer, which may have arrived by then.
    return max(0.0, total - sum(parts))


def _row(name: str, *milliseconds: float) -> str:
    return padded(name, NAME_COLUMNS) + "".join(f"{value:9.2f}" for value in milliseconds)
