"""Work that is made ready while the last is being done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def prefetched(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """The items in their order, made by one thread beside the caller's, at most ``ahead`` of them before they are
    asked for. What making one raises is raised in its place."""
    iterator = iter(items)
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(thread.submit(next, iterator, END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, iterator, END))
            yield item  # type: ignore[misc]  # not END
    finally:
        thread.shutdown(cancel_futures=True)
