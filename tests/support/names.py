"""A DNS server on loopback, for names with several addresses."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HEADER, IPV4 = 12, 1


class Names:
    """Answers every name with ``addresses``, which may change, at the UDP port ``port``."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    def serve(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                asked, caller = self.socket.recvfrom(2000)
                if not asked:
                    return
                self.socket.sendto(self._answer(asked), caller)

    def _answer(self, asked: bytes) -> bytes:
        """RFC 1035: the question again, and a record for each address, with a pointer to the name in the question."""
        question = asked[HEADER : asked.index(b"\0", HEADER) + 5]
        (kind,) = struct.unpack(">H", question[-4:-2])
        addresses = [socket.inet_aton(address) for address in self.addresses] if kind == IPV4 else []
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = [struct.pack(">HHHIH", 0xC000 + HEADER, IPV4, 1, 0, 4) + address for address in addresses]
        return head + question + b"".join(records)


@contextmanager
def naming(addresses: list[str]) -> Iterator[Names]:
    names = Names(addresses)
    thread = threading.Thread(target=names.serve)
    thread.start()
    try:
        yield names
    finally:
        with suppress(OSError):
            names.socket.shutdown(socket.SHUT_RDWR)  # or the thread waits there
        names.socket.close()
        thread.join()
