"""Where requests spent their time, by Triton's statistics before and after them, and by what its models tell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from client.connection import Connection
from client.errors import translated
from client.outputs import padded
from client.statistics import STEPS, TOTAL, Spent, spent_by_model
from client.wire import LIMIT, TIMES, Times, mean_times, steps

PATIENCE_S, LOOK_AGAIN_S = 1.0, 0.02
NAME_COLUMNS = 26


class Explainer:
    """Statistics of a connection's servers, and the times of this context's requests to them, from when this object is
    made until it is closed. Every call may raise a RankingError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers = [(name, InferenceServerClient(**connection.channel(name))) for name in connection.servers]
        self._steps = steps(self._config(connection.model, connection.version))
        self._configs = {step: self._config(step) for step in self._steps}
        self._threaded = [step for step in self._steps if _answers_later(self._configs[step])]
        self._before = self._spent()
        self._told: list[Times] = []
        self._collecting = TIMES.set(self._told)

    def close(self) -> None:
        TIMES.reset(self._collecting)
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
        told, totals = mean_times(self._told), list[float]()
        for step in self._steps:
            times, parts = [_mean(since[step], kind) for kind in (TOTAL, *STEPS)], self._parts(step, told)
            if parts and step in self._threaded:  # Triton's clock has only the part in which it took the request in
                queue, taken, inside = *times[1:3], sum(parts.values())
                times = [queue + taken + inside, queue, taken, inside]
            totals.append(times[0])
            yield _row(f"    {step}", *times)
            yield from (_row(f"      {name}", value) for name, value in parts.items())
        hidden = [step for step in self._threaded if not self._parts(step, told)]
        rest = _left(_mean(ensemble, TOTAL), *totals)
        yield _row(f"    {hidden[0]}'s engine" if hidden else "    between the steps", rest)
        yield from self._notes(since, requests, hidden)

    def _parts(self, step: str, told: dict[str, dict[str, float]]) -> dict[str, float]:
        """The time that a step tells, in ms by part; nothing from one of an older release."""
        given = {tensor["name"] for tensor in self._configs[step].get("output", [])}
        return next((told[name] for name in told if name in given), {})

    def _notes(self, since: dict[str, Spent], requests: int, hidden: Sequence[str]) -> Iterator[str]:
        for step in hidden:
            yield (
                f"{step} answers from threads of its own: its engine's time, and waiting for it, are what the steps "
                f"leave of {self._connection.model}"
            )
        others = max(spent["requests"] for spent in since.values()) - requests
        if others > 0:
            yield f"requests of other clients in these figures of the server: {others}; ask again when there are none"
        if others < 0:
            yield f"requests that the servers' statistics do not have: {-others}"

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


def _answers_later(config: dict[str, Any]) -> bool:
    """A student of the Python backend hands its pairs to a thread; Triton's clock stops before they are scored."""
    return bool(config.get("backend") == "python" and LIMIT in config.get("parameters", {}))


def _mean(spent: Spent, kind: str) -> float:
    return spent[kind] / max(spent["requests"], 1) / 1e6


def _left(total: float, *parts: float) -> float:
    # Triton's clock of a request stops when it has cleaned up after the answer, which may have arrived by then.
    return max(0.0, total - sum(parts))


def _row(name: str, *milliseconds: float) -> str:
    return padded(name, NAME_COLUMNS) + "".join(f"{value:9.2f}" for value in milliseconds)
