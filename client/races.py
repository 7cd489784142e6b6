"""Requests to servers that are raced, by threads and by asyncio, whose names begin with ``async_`` and ``Async``.

``start`` sends a request of tritonclient and calls ``then(result, error)`` at its end, one of them None, in a thread of
gRPC's or in the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from tritonclient.utils import InferenceServerException

from client.concurrency import async_cancel, cancel

if TYPE_CHECKING:
    from typing import Self

Then = Callable[[Any, InferenceServerException | None], None]


class Arrival(NamedTuple):
    """The end of a request to the server ``number``: its result, or its error."""

    number: int
    result: Any
    error: InferenceServerException | None


def start(client: Any, request: dict[str, Any], then: Then) -> Any:
    return client.async_infer(callback=lambda result, error: then(result, error), **request)


def async_start(client: Any, request: dict[str, Any], then: Then) -> Any:
    async def infer() -> None:
        try:
            result = await client.infer(**request)
        except InferenceServerException as error:
            then(None, error)
        # As gRPC's for a channel that was closed meanwhile: somebody waits for the end.
        except (Exception, asyncio.CancelledError) as error:
            then(None, InferenceServerException(repr(error)))
        else:
            then(result, None)

    return asyncio.create_task(infer())


class Race:
    """Requests to several servers of which the first answer counts. Those that are left at its end are cancelled."""

    def __init__(self) -> None:
        self._arrived, self._calls = SimpleQueue[Arrival](), list[Any]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        cancel(self._calls)

    def start(self, number: int, client: Any, request: dict[str, Any]) -> None:
        self._calls.append(start(client, request, lambda *outcome: self._arrived.put(Arrival(number, *outcome))))

    def next(self, timeout_s: float | None = None) -> Arrival:
        """Raises TimeoutError if none arrives so soon."""
        try:
            return self._arrived.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError from None


class AsyncRace:
    def __init__(self) -> None:
        self._arrived, self._calls = asyncio.Queue[Arrival](), list[Any]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await async_cancel(self._calls)

    def start(self, number: int, client: Any, request: dict[str, Any]) -> None:
        self._calls.append(
            async_start(client, request, lambda *outcome: self._arrived.put_nowait(Arrival(number, *outcome)))
        )

    async def next(self, timeout_s: float | None = None) -> Arrival:
        try:
            return await asyncio.wait_for(self._arrived.get(), timeout_s)
        except asyncio.TimeoutError:  # in Python 3.10 it is another class than TimeoutError
            raise TimeoutError from None
