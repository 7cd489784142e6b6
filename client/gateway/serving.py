"""The gateway as a process: its socket, its signals, and how it ends."""

from __future__ import annotations

import ipaddress
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from prometheus_client import disable_created_metrics

from client import InvalidRequestError
from client.gateway.app import create_app
from client.gateway.connections import Bounds, Connections
from client.gateway.keys import Keys
from client.gateway.logs import LOG, configuration
from client.gateway.metrics import Metrics
from client.gateway.server import Server
from client.gateway.settings import Settings, read

RESERVED = 64  # files that are no connection of a caller: libraries, the log, connections to ranking servers


def serve(argv: Sequence[str] | None) -> None:
    """Serve until SIGINT or SIGTERM, which is a good end. Raises RankingError for bad settings."""
    settings = read(argv)
    # A second series for each: nobody asks when a counter was made.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    keys, metrics = Keys(settings), Metrics()
    app = create_app(settings, keys, metrics)
    try:
        _try_certificate(settings)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        raise InvalidRequestError(f"--tls_certificate {settings.tls_certificate}, --tls_key: {reason}") from error
    with _listen(settings) as listener:
        config = _config(settings, app)
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGHUP, lambda *_: _reread(settings, keys, config))
        scheme = "https" if config.is_ssl else "http"
        print(f"{scheme}://{_address(listener)} serves {', '.join(settings.connections())}", flush=True)
        _tell_who_may_ask(keys, listener)
        try:
            Server(config, Connections(_bounds(settings), metrics)).run(sockets=[listener])
        except KeyboardInterrupt:
            return


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        ws="none",
        log_config=configuration(settings.log_format),
        log_level=settings.log_level,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    config.load()
    return config


def _try_certificate(settings: Settings) -> None:
    """Raises OSError or SSLError for a pair that cannot serve.

    It is tried where nobody is served, since a key that is not the certificate's leaves a context with neither.
    """
    if settings.tls_certificate is not None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)


def _bounds(settings: Settings) -> Bounds:
    """As many connections as there may be open files, which may be as many as the system lets this process have."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    most = settings.max_connections
    if files != resource.RLIM_INFINITY and files - RESERVED < most:
        most = max(1, files - RESERVED)
        LOG.warning("at most %d connections, since this process may have %d files (ulimit -n)", most, files)
    return Bounds(most, settings.max_connections_per_address, settings.head_timeout, settings.timeout)


def _tell_who_may_ask(keys: Keys, listener: socket.socket) -> None:
    if keys.needed:
        LOG.info("a key is needed")
    elif ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        LOG.info("no key is needed, and only this machine can ask")
    else:
        LOG.warning("no key is needed: whoever reaches this port can ask (--key_file, --api_keys)")


def _reread(settings: Settings, keys: Keys, config: uvicorn.Config) -> None:
    """At SIGHUP: the keys' file and the certificate, which connections from now on get."""
    keys.reread()
    if config.ssl is not None and settings.tls_certificate is not None:
        try:
            _try_certificate(settings)
            config.ssl.load_cert_chain(settings.tls_certificate, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            LOG.error("the certificate stays as it was: %s", error)


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


def _end(*_: object) -> None:
    """End well: uvicorn sends itself the signal again once all is closed."""
    sys.exit(0)
