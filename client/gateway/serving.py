"""The gateway as a process: its socket, its log, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn
from prometheus_client import disable_created_metrics

from client import InvalidRequestError
from client.gateway.app import create_app
from client.gateway.settings import Settings, read


def serve(argv: Sequence[str] | None) -> None:
    """Serve until SIGINT or SIGTERM, which is a good end. Raises RankingError for bad settings."""
    settings = read(argv)
    app = create_app(settings)
    listener = _listen(settings)
    signal.signal(signal.SIGTERM, _end)
    # A second series for each: nobody asks when a counter was made.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        app, log_level=settings.log_level, timeout_graceful_shutdown=int(settings.timeout) + 1, server_header=False
    )
    logging.getLogger("uvicorn.access").addFilter(_without_parameters)
    with listener:
        print(f"http://{_address(listener)} serves {', '.join(settings.connections())}", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only where the socket names its protocol, which this one does not, and
        # the second part of each answer waited 40 ms for the client's acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        # Python adds the address to some reasons.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise InvalidRequestError(f"cannot listen at {settings.host}:{settings.port}: {reason}") from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _without_parameters(record: logging.LogRecord) -> bool:
    """Keep only the path of an access line's address. Parameters, which no route has, may be text."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, address, *rest = record.args
        record.args = (client, method, str(address).partition("?")[0], *rest)
    return True


def _end(*_: object) -> None:
    """End well: uvicorn sends itself the signal again once all is closed."""
    sys.exit(0)
