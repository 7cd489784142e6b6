"""Connections of callers: how many there may be, and how long a caller may take to send a head or to read an answer."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from client.gateway.logs import Seldom
from client.gateway.metrics import Metrics

CALLER = "caller"  # in a request's state: its connection
GOODBYE_S = 1.0  # for an idle caller's own end of TLS


class Bounds(NamedTuple):
    """Connections in all and of an address; seconds for the head of a request, and for the reading of an answer."""

    connections: int
    per_address: int
    head_s: float
    read_s: float


class Connections:
    """All that are open, from the moment in which they are accepted, in the order of their last answers.

    Where there are too many, the one is closed that has waited for a head for the longest. Those that never had an
    answer go first, so that callers who come back keep theirs.
    """

    def __init__(self, bounds: Bounds, metrics: Metrics) -> None:
        self.bounds, self._closed, self._seldom = bounds, metrics.connections_closed, Seldom()
        self._open, self._of = dict[Caller, None](), Counter[str]()
        metrics.connections.set_function(lambda: len(self._open))

    def admit(self, caller: Caller) -> bool:
        """Count it; False if there is no place, because all others have a request under way."""
        if crowd := self._crowd(caller.address):
            idle = min((other for other in crowd if other.waits), key=lambda other: other.had_answer, default=None)
            if idle is None:
                self.tell("refused", f"a connection from {caller.address}: all others have a request under way")
                return False
            idle.abort("crowded", "of too many connections the one that was idle for the longest")
        self._of[caller.address] += 1
        self._open[caller] = None
        return True

    def answered(self, caller: Caller) -> None:
        if caller in self._open:
            self._open[caller] = self._open.pop(caller)

    def remove(self, caller: Caller) -> None:
        if caller in self._open:
            del self._open[caller]
            self._of[caller.address] -= 1
            if not self._of[caller.address]:
                del self._of[caller.address]

    def tell(self, reason: str, what: str) -> None:
        self._closed.labels(reason).inc()
        self._seldom.warn(f"closed {what}")

    def __contains__(self, caller: Caller) -> bool:
        return caller in self._open

    def _crowd(self, address: str) -> list[Caller]:
        """The connections of which one has to go before there is another one of this address; mostly none."""
        if self._of[address] >= self.bounds.per_address:
            return [other for other in self._open if other.address == address]
        return list(self._open) if len(self._open) >= self.bounds.connections else []


class Caller(H11Protocol):
    """A connection. It has a time limit for each head of a request, and for the reading of each answer."""

    def __init__(self, address: str, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.app_state = {**self.app_state, CALLER: self}
        self.address, self.had_answer = neighbourhood(address), False
        self._unread = False  # all of an answer was written, and its caller has not read all
        self._connections, self._bounds = connections, connections.bounds
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._head: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it has no request under way, and nothing of an answer is left here."""
        at_work = self.cycle is not None and not self.cycle.response_complete
        return not at_work and (self.flow is None or not self.flow.write_paused)

    def open(self, connection: socket.socket) -> None:
        """With TLS, this takes as long as the caller lets it, up to the time limit of a head."""
        self._await_head()
        self._opening = asyncio.create_task(self._open(connection))

    async def has_read(self) -> None:
        """Wait until nothing of the answer is left here, or the connection is lost."""
        await self.flow.drain()

    def abort(self, reason: str, what: str) -> None:
        """Close it, whatever is left to send."""
        self._connections.tell(reason, f"{what}, from {self.address}")
        self._forget()
        if self._opening is not None and self._opening.done():
            self.transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing is paused as soon as anything is left here, and goes on when nothing is. (With 0, TLS always pauses.)
        transport.set_write_buffer_limits(high=1, low=0)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        self.had_answer = True
        self._connections.answered(self)
        self._unread = self.flow.write_paused
        if not self._unread:
            self._forget_reading()
        super().on_response_complete()  # it may begin the next request, which was sent along with this one
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            what = f"a connection whose answer was not read within {self._bounds.read_s:g} s"
            self._reading = self.loop.call_later(self._bounds.read_s, self.abort, "unread", what)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:  # and nothing of the next answer was written, which may be under way
            self._forget_reading()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(GOODBYE_S, self.transport.abort)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: self, connection, ssl=self.config.ssl)
        except OSError:  # TLS was not agreed upon
            self._forget()

    def _forget(self) -> None:
        self._connections.remove(self)
        _cancel(self._head, self._reading)

    def _look(self) -> None:
        """Keep the time limit of what is waited for. Between two requests that is uvicorn's, for idle connections."""
        if not self.waits:
            self._forget_head()
            return
        self._forget_reading()
        if self.timeout_keep_alive_task is not None:
            return
        if self.had_answer and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            # What came was the rest of a body, of a request that had its answer before.
            self._forget_head()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self._head is None:
            self._await_head()

    def _await_head(self) -> None:
        """Or the rest of a body that nobody reads."""
        in_body = self.had_answer and self.conn.their_state is not h11.IDLE
        seconds = self.timeout_keep_alive if in_body else self._bounds.head_s
        what = f"a connection that sent no whole head of a request within {seconds:g} s"
        self._head = self.loop.call_later(seconds, self.abort, "head", what)

    def _forget_head(self) -> None:
        _cancel(self._head)
        self._head = None

    def _forget_reading(self) -> None:
        _cancel(self._reading)
        self._reading, self._unread = None, False


def neighbourhood(address: str) -> str:
    """The address under which a caller is counted: of IPv6 its network of 64 bits, since one mostly has all of it."""
    with suppress(ValueError):  # IPv4, or what a proxy says
        found = ipaddress.IPv6Address(address.partition("%")[0])
        return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))
    return address


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()
