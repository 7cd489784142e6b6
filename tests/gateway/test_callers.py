"""Callers that hold connections: they send nothing, or half a head, or read no answer."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from client.gateway.connections import Bounds, Caller, Connections
from client.gateway.metrics import Metrics
from tests.support.gateways import ASKED, PATIENCE_S, Gateway, gateway_running, refusal
from tests.support.odd_servers import OddServer, odd_server
from tests.support.waiting import eventually

FILES, SILENT = 256, 300
HALF_A_HEAD = b"POST /v2/rerank HTTP/1.1\r\nHost: x\r\n"
TEXTS = ["river bank " * 90_000] * 9  # 9 MB
LARGE = {"query": "garden", "documents": TEXTS, "return_documents": True}


@pytest.fixture(scope="module")
def service() -> OddServer:
    return OddServer()


@pytest.fixture(scope="module")
def besieged(service: OddServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two requests at a time; few files; an answer has to be read within as long as a body may take."""
    flags = ["--max_concurrent", "2", "--timeout", "20", "--head_timeout", "10", "--max_connections_per_address", "250"]
    log = tmp_path_factory.mktemp("besieged") / "log"
    with odd_server(service) as url, gateway_running(log, "--servers", url, *flags, files=FILES) as gateway:
        yield gateway


def address(gateway: Gateway) -> tuple[str, int]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return host, int(port)


def status(connection: socket.socket) -> int:
    """The status of the next answer, whose body is read too."""
    with HTTPResponse(connection) as answer:
        answer.begin()
        answer.read()
        return answer.status


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def closed(gateway: Gateway, reason: str) -> float:
    return gateway.metrics("disranker_gateway_connections_closed_total", reason=reason)


def test_idle_connections_are_in_nobodys_way(besieged: Gateway) -> None:
    """Without bounds all requests timed out, and asyncio wrote megabytes of log a second."""
    with ExitStack() as held, httpx.Client(timeout=PATIENCE_S) as regular:
        regular.post(f"{besieged.url}/v2/rerank", json=ASKED).raise_for_status()
        for number in range(SILENT):
            local = (f"127.0.0.{2 + number % 2}", 0)
            silent = held.enter_context(socket.create_connection(address(besieged), source_address=local))
            silent.sendall(HALF_A_HEAD if number % 3 else b"")
        for client in (regular, httpx):
            client.post(f"{besieged.url}/v2/rerank", json=ASKED, timeout=PATIENCE_S).raise_for_status()
        assert besieged.metrics("disranker_gateway_connections") <= FILES
        assert closed(besieged, "crowded") >= SILENT - FILES
        eventually(lambda: closed(besieged, "crowded") + closed(besieged, "head") == SILENT)
    told = [line for line in besieged.log.read_text().splitlines() if "HTTP/1.1" not in line]
    assert "WARNING:  at most 192 connections, since this process may have 256 files (ulimit -n)" in told
    assert any("too many connections the one that was idle for the longest, from 127.0.0." in line for line in told)
    assert len(told) < 50


def test_a_head_has_a_time_limit_on_a_connection_that_was_used(besieged: Gateway) -> None:
    """Not so one that is idle, also after the body of a request that had its answer before."""
    before = closed(besieged, "head")
    with ExitStack() as held:
        idle, used = (
            held.enter_context(socket.create_connection(address(besieged), timeout=PATIENCE_S)) for _ in range(2)
        )
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        assert status(idle) == 200
        idle.sendall(b"body")
        used.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert used.recv(1000).startswith(b"HTTP/1.1 200")
        used.sendall(HALF_A_HEAD)
        with suppress(ConnectionResetError):
            while used.recv(1000):
                pass
        assert closed(besieged, "head") == before + 1
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(idle) == 200


def test_the_time_to_read_is_over_when_all_was_read_though_the_next_request_is_under_way() -> None:
    size = 2**23

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/held":
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def read_and_ask() -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        connections = Connections(Bounds(9, 9, 600, 600), Metrics())
        caller = Caller("a", connections, config=config, server_state=ServerState(), app_state={})
        near, far = socket.socketpair()
        caller.open(near)
        reader, writer = await asyncio.open_connection(sock=far)
        for path in (b"/", b"/held"):
            writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: caller._reading is not None)
        await reader.readexactly(size)
        await until(lambda: caller._reading is None)
        assert caller.scope["path"] == "/held" and not caller.waits
        writer.close()
        caller.transport.abort()

    asyncio.run(asyncio.wait_for(read_and_ask(), PATIENCE_S))


def test_a_request_has_its_place_until_its_answer_was_read(besieged: Gateway, service: OddServer) -> None:
    with ExitStack() as held:
        unread = [held.enter_context(socket.socket()) for _ in range(2)]
        for caller in unread:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(address(besieged))
            body = json.dumps(LARGE).encode()
            head = f"{HALF_A_HEAD.decode()}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
        eventually(lambda: service.sizes.count(len(TEXTS)) == 2)  # and it has answered
        assert "2 requests are being worked on" in refusal(httpx.post(f"{besieged.url}/v2/rerank", json=ASKED), 429)
        eventually(lambda: closed(besieged, "unread") == 2)
    answer = httpx.post(f"{besieged.url}/v2/rerank", json=LARGE, timeout=PATIENCE_S)
    assert [one["document"]["text"] for one in answer.json()["results"]] == TEXTS


@settings(max_examples=30)
@given(hosts=st.lists(st.sampled_from("abcde"), max_size=40), most=st.integers(1, 9), per_address=st.integers(1, 9))
def test_there_are_never_more_than_may_be(hosts: list[str], most: int, per_address: int) -> None:
    """And the last one to come is always among them, since none has a request under way."""

    async def come() -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        connections = Connections(Bounds(most, per_address, 60, 60), metrics := Metrics())
        there, of_metrics = list[Caller](), metrics.text
        for host in hosts:
            caller = Caller(host, connections, config=config, server_state=ServerState(), app_state={})
            assert connections.admit(caller)
            there = [other for other in there if other in connections] + [caller]
            assert len(there) <= most
            assert max(Counter(other.address for other in there).values()) <= per_address
        assert f"disranker_gateway_connections {len(there):.1f}" in of_metrics().decode()

    asyncio.run(come())


async def app(scope: Any, receive: Any, send: Any) -> None: ...
