"""Items made in advance by another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def prefetched(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """The items in their order, at most ``ahead`` of them made before they are taken.

    One other thread makes them. An error in it is raised in the place of the item.
    """
    iterator = iter(items)
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(thread.submit(next, iterator, END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, iterator, END))
            yield item  # type: ignore[misc]  # not END
    finally:
        thread.shutdown(cancel_futures=True)
