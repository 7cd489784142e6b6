"""A relay before a server that stands still on demand. Stopping Triton's processes instead can crash it: locks that its
Python backend shares with the models' processes have a time limit. Standard library only."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType


class StallingRelay:
    """Listens at ``url`` (host:port) and hands all bytes on to and from ``target`` (host:port), while it lasts.
    ``passed`` counts them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.passed = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> StallingRelay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flowing.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def stall(self, seconds: float) -> None:
        """Nothing flows in either direction meanwhile; what came is handed on afterwards."""
        self._flowing.clear()
        time.sleep(seconds)
        self._flowing.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [caller, server]
                for source, sink in ((caller, server), (server, caller)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # one side has gone, so does the other
            while data := source.recv(1 << 16):
                self._flowing.wait()
                sink.sendall(data)
                self.passed += len(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
