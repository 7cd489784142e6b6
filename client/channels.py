"""For any number of threads. Made of client/channels_async.py by client/unasync.py: edit that one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tritonclient.grpc as grpc

from client.concurrency import cancel, has_ended, here, is_of_closing, run_at
from client.connection import Connection
from client.errors import InvalidRequestError

CLOSED = "this client was closed"


@dataclass
class Opened:
    """The channel to each server, and the probes under way; of asyncio they belong to one event loop."""

    clients: list[grpc.InferenceServerClient]
    probes: dict[int, Any] = field(default_factory=dict)
    probing: set[int] = field(default_factory=set)

    def close(self) -> None:
        cancel([*self.probes.values()])
        for client in self.clients:
            client.close()


class Channels:
    """The open channels of each event loop. For any number of threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._opened = dict[Any, Opened]()
        self._closed = False

    def close(self) -> None:
        with self._lock:
            opened, self._opened, self._closed = self._opened, {}, True
        for place, one in opened.items():
            run_at(place, one.close)

    @property
    def here(self) -> Opened:
        """The channels of the event loop that runs, opened if need be. Those of loops that have ended are dropped."""
        with self._lock:
            if self._closed:
                raise InvalidRequestError(CLOSED)
            if (place := here()) not in self._opened:
                self._opened = {there: one for there, one in self._opened.items() if not has_ended(there)}
                settings = self._connection
                clients = [grpc.InferenceServerClient(**settings.channel(server)) for server in settings.servers]
                self._opened[place] = Opened(clients)
            return self._opened[place]

    @contextmanager
    def closed_meanwhile(self) -> Iterator[None]:
        """Raises InvalidRequestError for whatever ends a call in the block because this client was closed."""
        try:
            yield
        except BaseException as error:
            if self._closed and is_of_closing(error):
                raise InvalidRequestError(CLOSED) from error
            raise
