"""uvicorn, with a bound on connections.

asyncio's own loop accepts all that come before it serves one of them. Where no file is left for another one, Python
3.11 logs that some two thousand times, and tries again as often after a second.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from client.gateway.connections import Caller, Connections
from client.gateway.logs import Seldom

PAUSE_S = 0.1


class Server(uvicorn.Server):
    """Accepts connections one at a time; those that wait to be accepted cost the process nothing."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections, self._seldom = connections, Seldom()
        self._accepting: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                connection, (host, *_) = await loop.sock_accept(listener)
            except OSError as error:
                self._seldom.warn(f"cannot accept connections: {error.strerror}")
                await asyncio.sleep(PAUSE_S)
                continue
            self._serve_caller(connection, host)
            await asyncio.sleep(0)  # others' turn: accepting does not wait where somebody is there already

    def _serve_caller(self, connection: socket.socket, host: str) -> None:
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        caller = Caller(host, self._connections, config=self.config, **state)
        if self._connections.admit(caller):
            caller.open(connection)
        else:
            connection.close()
