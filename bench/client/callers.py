"""The same requests by four callers: our client and tritonclient alone, with threads and with asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tritonclient.grpc as grpc
import tritonclient.grpc.aio as aio

from client import AsyncRankingClient, RankingClient, RankingRequest, wire
from client.records import as_document


class Round(NamedTuple):
    """Of one round: mean seconds of a request, and processor seconds of the whole process for each."""

    latency: float
    processor: float


@dataclass(frozen=True)
class Load:
    """Each of ``concurrency`` callers sends the next request when it has its answer."""

    url: str
    model: str
    requests: Sequence[RankingRequest]
    concurrency: int


Caller = Callable[[Load], Round]


def ours_threads(load: Load) -> Round:
    with RankingClient(load.url, load.model) as client:
        client.document_limit()
        return _threads(load, lambda number: client.rank(*_of(load, number)))


def raw_threads(load: Load) -> Round:
    """One tritonclient for all threads, inputs prepared beforehand, outputs as arrays."""
    with grpc.InferenceServerClient(load.url) as client:
        prepared = [_prepared(request) for request in load.requests]

        def call(number: int) -> None:
            _arrays(client.infer(load.model, prepared[number]))

        return _threads(load, call)


def ours_asyncio(load: Load) -> Round:
    async def run() -> Round:
        async with AsyncRankingClient(load.url, load.model) as client:
            await client.document_limit()
            return await _tasks(load, lambda number: client.rank(*_of(load, number)))

    return asyncio.run(run())


def raw_asyncio(load: Load) -> Round:
    async def run() -> Round:
        prepared = [_prepared(request) for request in load.requests]
        async with aio.InferenceServerClient(load.url) as client:

            async def call(number: int) -> None:
                _arrays(await client.infer(load.model, prepared[number]))

            return await _tasks(load, call)

    return asyncio.run(run())


def _of(load: Load, number: int) -> tuple[str, Sequence[Any]]:
    request = load.requests[number]
    return request.query, request.documents


def _prepared(request: RankingRequest) -> list[grpc.InferInput]:
    return wire.inputs(request.query, [as_document(item) for item in request.documents])


def _arrays(result: Any) -> None:
    for name in wire.OUTPUTS:
        result.as_numpy(name)


def _threads(load: Load, call: Callable[[int], Any]) -> Round:
    following, latencies, failures = iter(range(len(load.requests))), list[float](), list[Exception]()

    def caller() -> None:
        try:
            for number in following:  # of a range: one at a time, whichever thread asks
                begin = time.perf_counter()
                call(number)
                latencies.append(time.perf_counter() - begin)
        except Exception as error:  # raised by the main thread
            failures.append(error)

    threads = [threading.Thread(target=caller) for _ in range(load.concurrency)]
    begin = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    processor = time.process_time() - begin
    if failures:
        raise failures[0]
    return Round(sum(latencies) / len(latencies), processor / len(latencies))


async def _tasks(load: Load, call: Callable[[int], Any]) -> Round:
    following, latencies = iter(range(len(load.requests))), list[float]()

    async def caller() -> None:
        for number in following:
            begin = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - begin)

    begin = time.process_time()
    await asyncio.gather(*(caller() for _ in range(load.concurrency)))
    processor = time.process_time() - begin
    return Round(sum(latencies) / len(latencies), processor / len(latencies))
