"""Items made ahead of time come as they would have come without."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import PATIENCE_S
from trainer.scoring.prefetch import prefetched


def test_items_keep_their_order_and_are_made_by_another_thread() -> None:
    makers = set()

    def items() -> Iterator[int | None]:
        for number in range(100):
            makers.add(threading.get_ident())
            yield number if number % 3 else None

    assert list(prefetched(items(), ahead=4)) == [number if number % 3 else None for number in range(100)]
    assert len(makers) == 1
    assert makers.isdisjoint({threading.get_ident()})


def test_no_more_are_made_than_asked_for() -> None:
    made = []
    enough = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 4:
                enough.set()
            yield number

    ready = prefetched(items(), ahead=3)
    assert [next(ready), next(ready)] == [0, 1]
    assert enough.wait(PATIENCE_S)  # three beyond the second
    ready.close()  # type: ignore[attr-defined]
    assert made == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    ready = prefetched(items(), ahead=8)
    assert [next(ready), next(ready), next(ready)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(ready)
