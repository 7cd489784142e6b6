"""Where a client's processor time goes: the client library's own functions, and tritonclient's inside of them.

Functions are wrapped while they are measured. Each call's time is its own: what it spends in other wrapped functions is
theirs. The clock is the thread's, so waiting for a server, for a processor or for Python's lock counts for nobody.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import tritonclient.grpc as grpc
from tritonclient.grpc import InferInput, InferResult

from client import asynchronous, attempts, ranking, wire

OURS, THEIRS = "ours", "tritonclient"
Seconds = dict[tuple[str, str], float]  # (whose, what) -> seconds of processor time

# Ours are looked up where they are called. None of them waits, so they nest in asyncio too.
SHARED: tuple[tuple[str, str, Any, str], ...] = (
    (OURS, "checks of the request", wire, "checked"),
    (OURS, "texts to bytes", wire, "inputs"),
    (OURS, "checks of the answer", wire, "scores"),
    (OURS, "attempts, balancing", attempts.Attempt, "__enter__"),
    (OURS, "attempts, balancing", attempts.Attempt, "__exit__"),
    (THEIRS, "bytes to tensors", InferInput, "set_data_from_numpy"),
    (THEIRS, "tensors to arrays", InferResult, "as_numpy"),
)
THREADS = (
    *SHARED,
    (OURS, "sorting, records", ranking, "ranked"),
    (OURS, "all else", ranking.RankingClient, "rank"),
    (THEIRS, "the call", grpc.InferenceServerClient, "infer"),
)
ASYNCIO = (*SHARED, (OURS, "sorting, records", asynchronous, "ranked"))


class _Stack(threading.local):
    """The time that calls under way in this thread have spent in wrapped functions below them."""

    def __init__(self) -> None:
        self.below = [0.0]


@contextmanager
def measured(functions: tuple[tuple[str, str, Any, str], ...]) -> Iterator[Seconds]:
    """Fills the result while the block runs."""
    seconds: Seconds = defaultdict(float)
    lock, stack = threading.Lock(), _Stack()

    def wrapped(whose: str, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            stack.below.append(0.0)
            begin = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.thread_time() - begin
                own = spent - stack.below.pop()
                stack.below[-1] += spent
                with lock:
                    seconds[whose, what] += own

        return call

    with ExitStack() as restore:
        for whose, what, place, name in functions:
            function = getattr(place, name)
            setattr(place, name, wrapped(whose, what, function))
            restore.callback(setattr, place, name, function)
        yield seconds
