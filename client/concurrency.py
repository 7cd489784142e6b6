"""The differences between threads and asyncio. Names of asyncio begin with ``async_``, those of threads have the rest.

``in_order`` calls a function for each of some items, ``at_once`` calls at a time, and yields the results in the order
of the items, each as soon as it is there. It takes items beyond those answered, ``ahead`` of them at most, while it
waits: a source may be slow, or wait for the answers. The first exception, of a call or of the source, ends it. Calls
see the caller's context variables.

``cancel`` ends calls under way.

``here`` is what channels that are opened now belong to: nothing, or the event loop that runs. ``has_ended`` tells
whether that is over, and ``run_at`` calls a function there. ``is_of_closing`` tells whether closing a client may have
raised an error.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
)
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# A signal that comes just before a thread waits is seen when the wait is over: such waits are cut.
LOOK_S = 0.5

sleep, async_sleep = time.sleep, asyncio.sleep

# In other loops: a loop alone does not keep its tasks from being collected.
_elsewhere = set[asyncio.Task[None]]()


def in_order(
    call: Callable[[Item], Result], items: Iterable[Item], at_once: int, ahead: int | None = None
) -> Generator[Result, None, None]:
    room, closed = threading.Semaphore((ahead or at_once) - 1), threading.Event()
    results: SimpleQueue[Future[Result] | None] = SimpleQueue()
    pool, context = ThreadPoolExecutor(at_once), copy_context()

    def feed() -> None:
        try:
            for item in items:
                results.put(pool.submit(context.copy().run, call, item))
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
        while (future := _next(results)) is not None:
            while not wait((future,), LOOK_S).done:
                pass
            yield future.result()
            room.release()
    finally:
        closed.set()
        room.release()
        pool.shutdown(cancel_futures=True)


def _next(results: SimpleQueue[Item]) -> Item:
    while True:
        with suppress(Empty):
            return results.get(timeout=LOOK_S)


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
    elif isinstance(items, Collection):
        for item in items:
            yield item
    else:  # a source may block, the loop must not
        iterator, end = iter(items), object()
        while (found := await _in_thread(lambda: next(iterator, end))) is not end:
            yield found


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """The result of a call in a thread for which nobody waits when the loop ends, as asyncio would for its own."""
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def tell(outcome: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if done.done() else outcome())

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            failure = error  # which is no name any more after its block
            tell(lambda: done.set_exception(failure))
        else:
            tell(lambda: done.set_result(result))

    threading.Thread(target=run, daemon=True).start()
    return done


def cancel(calls: Iterable[Any]) -> None:
    for call in calls:
        call.cancel()


async def async_cancel(calls: Iterable[Any]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def here() -> object:
    return None


def async_here() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def has_ended(place: object) -> bool:
    return False


def async_has_ended(place: asyncio.AbstractEventLoop) -> bool:
    return place.is_closed()


def run_at(place: object, call: Callable[[], None]) -> None:
    call()


async def async_run_at(place: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Nobody waits for another loop, which may stand still; what has ended needs nothing."""

    def begin() -> None:
        task = place.create_task(call())
        _elsewhere.add(task)
        task.add_done_callback(_elsewhere.discard)

    if place is asyncio.get_running_loop():
        await call()
    else:
        with suppress(RuntimeError):  # it has ended
            place.call_soon_threadsafe(begin)


def is_of_closing(error: BaseException) -> bool:
    return isinstance(error, Exception)


def async_is_of_closing(error: BaseException) -> bool:
    """gRPC cancels the requests of a channel that is closed, as if their tasks were."""
    if isinstance(error, asyncio.CancelledError):
        asked = getattr(asyncio.current_task(), "cancelling", lambda: 0)  # Python 3.10 does not tell
        return not asked()
    return isinstance(error, Exception)
