"""Where the servers are, and how a client talks to them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.errors import InvalidRequestError

LARGEST = 2**31 - 1
PERSON, BATCH = 1, 2  # priorities
LONGEST_S = 1e9  # 30 years; clocks and gRPC count with it
# With or without gRPC's schemes, such as dns:///localhost:8001 and ipv4:127.0.0.1:8001,127.0.0.2:8001.
LOOPBACK = re.compile(r"([a-z0-9]+:(//[^/]*/)?)?(localhost|127(\.\d+){3}|\[::1\])(:\d+)?(,.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Connection:
    """Settings of a client. Raises InvalidRequestError for those that make no sense.

    servers: gRPC ports as ``host:port``; a call goes to the one with the fewest documents under way; behind a name
        with several addresses these take turns
    model: the ensemble that ranks
    version: of the model; "" is the server's choice
    timeout_s: time limit of a whole call, with all its attempts
    attempts: of a request, at most; which failures have another one is said by the classes of the errors (scoring
        changes nothing, therefore it is safe to repeat)
    hedge: a share such as 0.95: the call asks a second server, too, when it waited longer than this share of recent
        requests of like size took; None never does
    priority: 1 where a person waits, 2 for batch work, which a server that has much to do takes later
    tls: encrypt, and check the server's certificate by the system's authorities
    root_certificates: PEM file of the authorities, in place of the system's
    certificate_chain: PEM file of the client's own certificate
    private_key: PEM file of its key
    authorization: value of that header
    keepalive_s: time between pings; Triton cuts off a client that pings more often than every 300 s
    max_documents: of a request to the server; more are split and merged; 0 asks each server
    """

    servers: tuple[str, ...] = ("localhost:8001",)
    model: str = "ranker"
    version: str = ""
    timeout_s: float = 30.0
    attempts: int = 4
    hedge: float | None = None
    priority: int = PERSON
    tls: bool = False
    root_certificates: Path | None = None
    certificate_chain: Path | None = None
    private_key: Path | None = None
    authorization: str | None = None
    keepalive_s: float = 300.0
    max_documents: int = 0

    def __post_init__(self) -> None:
        if not self.servers or not all(self.servers):
            raise InvalidRequestError("servers: name at least one, as host:port of its gRPC port")
        if not all(server.isprintable() for server in self.servers):
            raise InvalidRequestError(f"servers: {self.servers!r} are no addresses, host:port of a gRPC port")
        if urls := [server for server in self.servers if server.startswith(("http://", "https://"))]:
            raise InvalidRequestError(f"servers: {urls[0]} is a URL: name host:port of a gRPC port (8001, not 8000)")
        if not 0 < self.timeout_s <= LONGEST_S:
            raise InvalidRequestError(f"timeout_s must be above 0 and at most {LONGEST_S:g}, not {self.timeout_s:g}")
        if not 0 < self.keepalive_s <= LARGEST / 1000:
            raise InvalidRequestError(
                f"keepalive_s must be above 0 and at most {LARGEST // 1000}, not {self.keepalive_s:g}"
            )
        if self.attempts < 1:
            raise InvalidRequestError(f"attempts must be at least 1, not {self.attempts}")
        if self.hedge is not None and not 0 < self.hedge < 1:
            raise InvalidRequestError(f"hedge must be a share between 0 and 1, or None, not {self.hedge:g}")
        if self.priority not in (PERSON, BATCH):
            raise InvalidRequestError(f"priority must be 1 (a person waits) or 2 (batch work), not {self.priority}")
        if self.max_documents < 0:
            raise InvalidRequestError(f"max_documents must be at least 1, or 0, not {self.max_documents}")
        for path in (self.root_certificates, self.certificate_chain, self.private_key):
            if path is not None and not path.is_file():
                raise InvalidRequestError(f"{path}: no such file")
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidRequestError("certificate_chain and private_key: give both or neither")

    @property
    def headers(self) -> dict[str, str] | None:
        return None if self.authorization is None else {"authorization": self.authorization}

    @property
    def secure(self) -> bool:
        return self.tls or self.root_certificates is not None or self.certificate_chain is not None

    def channel(self, server: str) -> dict[str, Any]:
        """The arguments of tritonclient's InferenceServerClient."""
        return {
            "url": server,
            "ssl": self.secure,
            "root_certificates": self.root_certificates and str(self.root_certificates),
            "certificate_chain": self.certificate_chain and str(self.certificate_chain),
            "private_key": self.private_key and str(self.private_key),
            "channel_args": [
                ("grpc.max_send_message_length", LARGEST),
                ("grpc.max_receive_message_length", LARGEST),
                ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", 20_000),
                # A server that comes back is found within about a second, not after two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.min_reconnect_backoff_ms", 5_000),  # whatever its name: how long connecting may take
                ("grpc.enable_retries", 0),  # attempts are counted here, and may go to another server
                # All addresses of a name, in place of the first; it is looked up again when a connection ends.
                ("grpc.lb_policy_name", "round_robin"),
                ("grpc.dns_min_time_between_resolutions_ms", 2_000),
                # No proxy of http_proxy's reaches this machine.
                ("grpc.enable_http_proxy", int(not LOOPBACK.fullmatch(server))),
            ],
        }


def parse_target(text: str, default: Connection) -> Connection:
    """Read ``model@host:port``, ``model`` or ``@host:port``; what is left out is the default's.

    Commas separate several servers. Raises InvalidRequestError.
    """
    model, at, servers = text.strip().partition("@")
    named = tuple(server.strip() for server in servers.split(",") if server.strip())
    if (at and not named) or not (model or named):
        raise InvalidRequestError(f"{text!r}: a target is model@host:port, model, or @host:port")
    return replace(default, model=model or default.model, servers=named or default.servers)
