"""The servers of a client for asyncio: which one answers, and what follows where one does not.

The one for threads, client/fleet.py, is made of this file by client/unasync.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from client import wire
from client.attempts import Attempts, Deadline, RetryBudget, Throttle
from client.balancer import Balancer
from client.channels_async import AsyncChannels, Opened
from client.concurrency import async_in_order, async_sleep
from client.connection import Connection
from client.errors import InvalidAnswerError, ModelNotReadyError, RankingError, translated
from client.latencies import Latencies
from client.races import Arrival, AsyncRace, async_start
from client.records import Document, Scores, Truncation

PROBE_S = 10.0
HALF, MOSTLY = 0.5, 0.9  # of recent requests
T = TypeVar("T")


class SmallerLimitError(Exception):
    """A server was met that takes fewer documents in a request than those before."""


class AsyncFleet:
    """Connections to one or several servers, one of which scores each request. Every call may raise a RankingError."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._channels = connection, AsyncChannels(connection)
        self.balancer, self.budget, self.throttle = Balancer(connection.servers), RetryBudget(), Throttle()
        self._latencies = Latencies()
        self._limits = dict[int, int]()  # documents that a server takes in a request, once it was asked

    async def close(self) -> None:
        """Close the connections. Requests under way end with an error."""
        await self._channels.close()

    async def is_ready(self) -> bool:
        """Whether at least one server answers and serves the model."""
        servers = range(len(self._connection.servers))
        with self._channels.closed_meanwhile():
            return any([ready async for ready in async_in_order(self._serves, servers, len(servers))])

    async def document_limit(self) -> int:
        """Documents that every server takes in a request, of those that answer."""
        deadline = Deadline.after(self._connection.timeout_s)

        async def try_to_ask(server: int) -> None:
            with suppress(InferenceServerException, RankingError):  # it is asked again at its first request
                await self._limit_of(server, deadline)

        attempts, servers = self._attempts(0, deadline), range(len(self._connection.servers))
        with self._channels.closed_meanwhile():
            await self._attempt(attempts, lambda server: self._limit_of(server, deadline), 0, deadline)
            async for _ in async_in_order(try_to_ask, servers, len(servers)):
                pass
        return self.limit

    @property
    def limit(self) -> int:
        """Documents that every server takes that was asked so far."""
        return self._connection.max_documents or min([*self._limits.values()], default=wire.NO_LIMIT)

    async def score(
        self, query: str, documents: Sequence[Document], deadline: Deadline, truncation: Truncation
    ) -> Scores:
        """Raises SmallerLimitError before a server gets more documents than it takes."""
        count, inputs = len(documents), wire.inputs(query, documents, truncation)
        attempts = self._attempts(count, deadline)

        async def infer(server: int) -> Scores:
            if count > await self._limit_of(server, deadline):
                raise SmallerLimitError
            begun, first = time.monotonic(), server
            if (after_s := self._hedge_after_s(count)) is None:
                result = await self._channels.here.clients[server].infer(
                    **wire.request(self._connection, inputs, deadline.left_s)
                )
            else:
                server, result, _ = await self._hedged(server, count, inputs, attempts, deadline, after_s)
            took_s = time.monotonic() - begun  # of the slower one, if two were asked, or less
            self._latencies.add(count, took_s)
            self.balancer.took(first, took_s / (self._latencies.quantile(count, HALF) or took_s))
            scores = wire.scores(result, count, self._connection.servers[server])
            self.balancer.answered(server)
            wire.collect_times(result)
            return scores

        with self.throttle.counted(), self._channels.closed_meanwhile():
            return await self._attempt(attempts, infer, count, deadline)

    def _attempts(self, documents: int, deadline: Deadline) -> Attempts:
        return Attempts(self.balancer, self.budget, documents, self._connection.attempts, deadline)

    async def _attempt(
        self, attempts: Attempts, call: Callable[[int], Awaitable[T]], documents: int, deadline: Deadline
    ) -> T:
        """The answer of one server to ``call(server)``: at first of the one with the least load, then of others."""
        while (pause := attempts.wait_s()) is not None:
            if pause:
                await async_sleep(pause)
            server, given_s = attempts.take(), deadline.left_s
            try:
                self._probe(but=server)
                return await call(server)
            except InferenceServerException as error:
                attempts.failed(server, self._failure(error, server, documents, deadline, given_s))
            except ModelNotReadyError as error:
                attempts.failed(server, error)
            finally:
                self.balancer.give_back(server, documents)
        raise attempts.failure

    async def _hedged(
        self, server: int, documents: int, inputs: Any, attempts: Attempts, deadline: Deadline, after_s: float
    ) -> Arrival:
        """The first answer: the server's, or that of another one which is asked too after ``after_s``."""
        others, failures, clients = list[int](), list[Arrival](), self._channels.here.clients
        async with AsyncRace() as race:
            try:
                race.start(server, clients[server], wire.request(self._connection, inputs, deadline.left_s))
                try:
                    arrival = await race.next(after_s)
                except TimeoutError:
                    others += self._second(documents, {*attempts.tried, server})
                    for other in others:
                        race.start(other, clients[other], wire.request(self._connection, inputs, deadline.left_s))
                    arrival = await race.next()
                while arrival.error is not None and len(failures) < len(others):
                    failures.append(arrival)
                    arrival = await race.next()
            finally:
                for other in others:
                    self.balancer.give_back(other, documents)
        for end in (*failures, arrival):
            if end.error is not None and (end.number != server or arrival.error is None):
                attempts.failed(end.number, self._failure(end.error, end.number, documents, deadline, 0.0))
        if arrival.error is not None:
            raise next(end.error for end in (*failures, arrival) if end.error is not None and end.number == server)
        return arrival

    def _hedge_after_s(self, documents: int) -> float | None:
        """How long to wait for an answer before another server is asked, too; None if that is never done."""
        hedge = self._connection.hedge
        if hedge is None or len(self._connection.servers) == 1:
            return None
        return self._latencies.quantile(documents, hedge)

    def _second(self, documents: int, tried: set[int]) -> list[int]:
        """A free server for a second request, which is known to take so many documents; or none."""
        second = self.balancer.take_free(documents, tried)
        if second is None:
            return []
        if documents <= (self._connection.max_documents or self._limits.get(second, 0)) and self.budget.spend():
            return [second]
        self.balancer.give_back(second, documents)
        return []

    def _probe(self, but: int) -> None:
        """Score a document on each broken server, ``but`` one, whose turn it is. Nobody waits for the answer."""
        opened = self._channels.here
        for server in self.balancer.to_probe(but):
            if server not in opened.probing:
                opened.probing.add(server)
                deadline = Deadline.after(min(PROBE_S, self._connection.timeout_s))
                request = wire.request(self._connection, wire.inputs(*wire.PROBE), deadline.left_s)
                probed = partial(self._probed, opened, server, deadline)
                opened.probes[server] = async_start(opened.clients[server], request, probed)

    def _probed(
        self, opened: Opened, server: int, deadline: Deadline, result: Any, error: InferenceServerException | None
    ) -> None:
        opened.probing.discard(server)
        if error is not None:
            self.balancer.failed(server, self._failure(error, server, 1, deadline, deadline.limit_s))
            return
        with suppress(InvalidAnswerError):
            wire.scores(result, 1, self._connection.servers[server])
            self.balancer.answered(server)

    def _failure(
        self, error: InferenceServerException, server: int, documents: int, deadline: Deadline, given_s: float
    ) -> RankingError:
        settings = self._connection
        over = deadline.left_s <= 0
        failure = translated(error, settings.servers[server], settings.model, deadline.limit_s, over)
        failure.__cause__ = error
        if failure.fault == "late" and given_s < (self._latencies.quantile(documents, MOSTLY) or 0.0):
            failure.fault = ""  # such requests mostly take longer: the time that was given is at fault
        if failure.fault == "broken":
            self._limits.pop(server, None)  # it may come back with another model
        return failure

    async def _limit_of(self, server: int, deadline: Deadline) -> int:
        """Documents that the server takes in a request; it is asked at the first one."""
        if limit := self._connection.max_documents or self._limits.get(server):
            return limit
        settings = self._connection

        async def config(model: str, version: str = "") -> dict[str, Any]:
            answer = await self._channels.here.clients[server].get_model_config(
                model, version, headers=settings.headers, as_json=True, client_timeout=max(deadline.left_s, 1e-4)
            )
            found: dict[str, Any] = answer["config"]
            return found

        ensemble = await config(settings.model, settings.version)
        wire.check_ranker(ensemble, settings.model, settings.servers[server])
        self._limits[server] = wire.limit([await config(step) for step in wire.steps(ensemble)])
        return self._limits[server]

    async def _serves(self, server: int) -> bool:
        settings, deadline = self._connection, Deadline.after(self._connection.timeout_s)
        with suppress(InferenceServerException):
            if self.balancer.is_broken(server):  # Triton may call a model ready whose process is dead
                result = await self._channels.here.clients[server].infer(
                    **wire.request(self._connection, wire.inputs(*wire.PROBE), deadline.left_s)
                )
                self._probed(self._channels.here, server, deadline, result, None)
                return not self.balancer.is_broken(server)
            ready: bool = await self._channels.here.clients[server].is_model_ready(
                settings.model, settings.version, headers=settings.headers, client_timeout=settings.timeout_s
            )
            return ready
        return False
