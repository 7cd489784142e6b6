"""The differences between threads and asyncio. Names of asyncio begin with ``async_``, those of threads have the rest.

``in_order`` calls a function for each of some items, ``at_once`` calls at a time, and yields the results in the order
of the items, each as soon as it is there. It takes items beyond those answered, ``ahead`` of them at most, while it
waits: a source may be slow, or wait for the answers. The first exception, of a call or of the source, ends it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

sleep, async_sleep = time.sleep, asyncio.sleep


def in_order(
    call: Callable[[Item], Result], items: Iterable[Item], at_once: int, ahead: int | None = None
) -> Generator[Result, None, None]:
    room, closed = threading.Semaphore((ahead or at_once) - 1), threading.Event()
    results: SimpleQueue[Future[Result] | None] = SimpleQueue()
    pool = ThreadPoolExecutor(at_once)

    def feed() -> None:
        try:
            for item in items:
                results.put(pool.submit(call, item))
                room.acquire()
                if closed.is_set():
                    return
            results.put(None)
        except BaseException as error:  # of the source; or of the pool, which may have been closed meanwhile
            failed = Future[Result]()
            failed.set_exception(error)
            results.put(failed)

    # Nobody waits for this thread: a source may never give another item.
    threading.Thread(target=feed, daemon=True).start()
    try:
        while (future := results.get()) is not None:
            yield future.result()
            room.release()
    finally:
        closed.set()
        room.release()
        pool.shutdown(cancel_futures=True)


async def async_in_order(
    call: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item] | AsyncIterable[Item],
    at_once: int,
    ahead: int | None = None,
) -> AsyncGenerator[Result, None]:
    room, places = asyncio.Semaphore((ahead or at_once) - 1), asyncio.Semaphore(at_once)
    results: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()
    tasks: list[asyncio.Task[Result]] = []

    async def one(item: Item) -> Result:
        async with places:
            return await call(item)

    async def feed() -> None:
        try:
            async for item in _asynchronous(items):
                tasks.append(asyncio.create_task(one(item)))
                results.put_nowait(tasks[-1])
                await room.acquire()
        finally:
            results.put_nowait(None)

    feeding = asyncio.create_task(feed())
    try:
        while (task := await results.get()) is not None:
            yield await task
            tasks.remove(task)
            room.release()
        await feeding
    finally:
        for left in (feeding, *tasks):
            left.cancel()
        await asyncio.gather(feeding, *tasks, return_exceptions=True)


async def _asynchronous(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
