"""Requests to a running Triton at given times, or as fast as some callers get their answers, by tritonclient's asyncio.

Their messages are made before the first one is sent: the load generator shares the cores with the server, and each
millisecond that it takes is one that the server lacks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.grpc.service_pb2 import ModelInferRequest

from client.attempts import Throttle
from client.errors import ServerOverloadedError
from client.wire import inputs
from loadtest._samples import Percentiles
from loadtest._traffic import Request

ANSWERED, REFUSED, LATE = "OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"
UNSENT = "not sent"  # refused by the client itself
TICK_S = 0.005  # requests that are due within one are sent together: a wake-up for each would take from the server


@dataclass
class Load:
    """The outcomes of the requests of one rate; times in milliseconds, an answer's from when its request was due."""

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)  # by gRPC's status
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)  # from the send
    lag_ms: list[float] = field(default_factory=list)  # how late requests were sent

    def a_second(self, *outcomes: str) -> float:
        return sum(self.outcomes[one] for one in outcomes or self.outcomes) / self.seconds

    @property
    def others(self) -> int:
        return self.outcomes.total() - sum(self.outcomes[one] for one in (ANSWERED, REFUSED, UNSENT, LATE))

    @property
    def latency(self) -> Percentiles | None:
        return Percentiles.of(self.answered_ms)

    @property
    def refusal(self) -> Percentiles | None:
        return Percentiles.of(self.refused_ms)

    @property
    def lag(self) -> Percentiles | None:
        return Percentiles.of(self.lag_ms)


class Callers:
    """Callers of one server, who wait ``limit_s`` for an answer and tell the server so.

    With ``throttle`` they share one, as the callers of a RankingClient do; without, every request is sent.
    """

    def __init__(
        self, url: str, model: str, requests: Sequence[Request], limit_s: float, throttle: Throttle | None = None
    ) -> None:
        self._url, self._limit_s, self._throttle = url, limit_s, throttle
        self._messages = itertools.cycle([_message(model, request, limit_s) for request in requests])

    def open_loop(self, times: Iterable[float], seconds: float) -> Load:
        """A request at each of ``times``, in seconds from now, whatever has become of those before."""
        return asyncio.run(self._open_loop(times, Load(seconds)))

    def closed_loop(self, callers: int, seconds: float) -> Load:
        """Requests of ``callers`` who each send the next one when the last one has ended."""
        return asyncio.run(self._closed_loop(callers, Load(seconds)))

    async def _open_loop(self, times: Iterable[float], load: Load) -> Load:
        async with triton.InferenceServerClient(self._url) as client:
            begin, asked = time.perf_counter(), set[asyncio.Task[None]]()
            for due in times:
                if (wait_s := begin + due - time.perf_counter()) > 0:
                    await asyncio.sleep(max(wait_s, TICK_S))
                if self._is_kept_back(begin + due, load):
                    continue
                task = asyncio.create_task(self._ask(client, begin + due, load))
                asked.add(task)
                task.add_done_callback(asked.discard)
            await asyncio.gather(*asked)
        return load

    async def _closed_loop(self, callers: int, load: Load) -> Load:
        async with triton.InferenceServerClient(self._url) as client:
            ends = time.perf_counter() + load.seconds

            async def call() -> None:
                while (now := time.perf_counter()) < ends:
                    await self._ask(client, now, load)

            await asyncio.gather(*(call() for _ in range(callers)))
        return load

    async def _ask(self, client: triton.InferenceServerClient, due: float, load: Load) -> None:
        sent, status = time.perf_counter(), ANSWERED
        try:
            # The stub itself: the client's own method makes the message anew, and reads the answer.
            await client._client_stub.ModelInfer(next(self._messages), timeout=self._limit_s)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        self._tell_throttle(status)
        now = time.perf_counter()
        load.outcomes[status] += 1
        load.lag_ms.append(1000 * (sent - due))
        if status == ANSWERED:
            load.answered_ms.append(1000 * (now - due))
        elif status == REFUSED:
            load.refused_ms.append(1000 * (now - sent))

    def _is_kept_back(self, due: float, load: Load) -> bool:
        """Whether the throttle refuses the request, which then costs no task."""
        try:
            if self._throttle:
                self._throttle.check()
        except ServerOverloadedError:
            load.outcomes[UNSENT] += 1
            load.lag_ms.append(1000 * (time.perf_counter() - due))
            return True
        return False

    def _tell_throttle(self, status: str) -> None:
        if self._throttle and status == ANSWERED:
            self._throttle.answered()
        elif self._throttle and status == REFUSED:
            self._throttle.overloaded(ServerOverloadedError(f"{self._url} is overloaded"))


def _message(model: str, request: Request, limit_s: float) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model)
    for tensor in inputs(request.query, request.documents).tensors:
        message.inputs.append(tensor._get_tensor())
        message.raw_input_contents.append(tensor._get_content())
    message.parameters["timeout"].int64_param = round(limit_s * 1e6)
    return message
