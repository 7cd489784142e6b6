"""A relay before a server that stands still or cuts connections on demand. Stopping Triton's processes instead can
crash it, since locks that its Python backend shares with the models' processes have a time limit."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, as a peer that died


class Relay:
    """Listens at ``url`` (host:port) and hands all bytes on to and from ``target`` (host:port), while it lasts.

    ``passed`` counts them. ``cuts`` connections are left to be cut in the middle of a request.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.passed = self.cuts = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flowing.set()
        for one in self._sockets:
            _end(one)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing flows in either direction meanwhile, and nobody is told; what came is handed on afterwards."""
        self._flowing.clear()
        yield
        self._flowing.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [caller, server]
                for pair in ((caller, server), (server, caller)):
                    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._relay, args=(*pair, pair[0] is caller), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, of_caller: bool) -> None:
        with suppress(OSError):  # one side has gone, so does the other
            while data := source.recv(1 << 16):
                self._flowing.wait()
                if of_caller and self.cuts and len(data) > 1000:  # the body of a request, not a ping
                    self.cuts -= 1
                    sink.sendall(data[: len(data) // 2])
                    for one in (source, sink):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        _end(one)
                sink.sendall(data)
                self.passed += len(data)
            sink.shutdown(socket.SHUT_WR)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # or a thread that waits for it stays there
    one.close()
