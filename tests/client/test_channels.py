"""Channels to servers: several event loops, closing, pickling, names with several addresses, proxies."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from client import AsyncRankingClient, InvalidRequestError, RankingClient, RankingError, ServerOverloadedError
from client.concurrency import async_run_at
from tests.support.clients import QUERY
from tests.support.names import naming
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.servers import ports
from tests.support.waiting import PATIENCE_S, eventually


def test_one_client_serves_event_loops_one_after_the_other_and_at_once() -> None:
    async def twice(client: AsyncRankingClient) -> list[list[float]]:
        return await asyncio.gather(*(client.score(QUERY, ["a", "b"]) for _ in range(2)))

    service = OddServer(np.arange, refusing(grpc.StatusCode.INTERNAL, "broken", times=1))
    with odd_server(service) as broken, odd_server(OddServer(np.arange)) as url, ThreadPoolExecutor(3) as pool:
        client = AsyncRankingClient([broken, url])  # with a probe of the broken one, which a loop's end cuts short
        for _ in range(3):
            assert asyncio.run(twice(client)) == [[0, 1]] * 2
        for found in [pool.submit(lambda: asyncio.run(twice(client))) for _ in range(6)]:
            assert found.result() == [[0, 1]] * 2

        async def end() -> None:
            await client.close()
            with pytest.raises(InvalidRequestError, match="this client was closed"):
                await client.score(QUERY, ["a"])

        asyncio.run(end())


def test_the_closing_of_another_loops_channels_is_not_collected_before_its_end() -> None:
    """The loop itself holds it weakly, and so does all else here."""

    def release(held: weakref.ref[asyncio.Future[None]]) -> None:
        gc.collect()
        if (future := held()) is not None:
            future.set_result(None)

    async def closing() -> None:
        loop = asyncio.get_running_loop()
        held = loop.create_future()
        loop.call_soon(release, weakref.ref(held))
        await held
        ended.set()

    ended, place = threading.Event(), asyncio.new_event_loop()
    there = threading.Thread(target=place.run_forever)
    there.start()
    try:
        asyncio.run(async_run_at(place, closing))
        assert ended.wait(PATIENCE_S)
    finally:
        place.call_soon_threadsafe(place.stop)
        there.join()
        place.close()


@pytest.mark.parametrize("hedge", [None, 0.5])
def test_closing_ends_calls_under_way_and_refuses_others(hedge: float | None) -> None:
    """With an error of ours, though gRPC cancels the tasks of asyncio."""
    held, service = Held(), OddServer(np.arange)

    async def close_meanwhile(urls: list[str]) -> None:
        client = AsyncRankingClient(urls, hedge=hedge)
        for _ in range(20):
            await client.score(QUERY, ["a"])
        service.act = held
        call = asyncio.create_task(client.score(QUERY, ["a"]))
        assert await asyncio.to_thread(held.held.wait, 60)
        await client.close()
        with pytest.raises(InvalidRequestError, match="this client was closed"):
            await call

    def close_in_threads(urls: list[str]) -> None:
        client = RankingClient(urls, hedge=hedge)
        for _ in range(20):
            client.score(QUERY, ["a"])
        service.act = held
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.score, QUERY, ["a"])
            assert held.held.wait(60)
            client.close()
            with pytest.raises(InvalidRequestError, match="this client was closed"):
                call.result()
        for ask in (client.document_limit, client.is_ready, lambda: client.score(QUERY, ["a"])):
            with pytest.raises(InvalidRequestError, match="this client was closed"):
                ask()

    with odd_server(service) as url, odd_server(service) as other:
        asyncio.run(close_meanwhile([url, other]))
        held, service = Held(), OddServer(np.arange)
    with odd_server(service) as url, odd_server(service) as other:
        close_in_threads([url, other])


@pytest.mark.parametrize("kind", [RankingClient, AsyncRankingClient])
def test_a_client_is_pickled_as_its_settings(kind: Any) -> None:
    with odd_server(OddServer(np.arange)) as url:
        client = kind(url, timeout_s=60.0, authorization="Bearer a")
        again = pickle.loads(pickle.dumps(client))
        assert type(again) is kind and again.connection == client.connection
        with RankingClient.of(again.connection) as other:
            assert other.score(QUERY, ["a", "b"]) == [0, 1]


def test_errors_are_pickled_with_what_they_know() -> None:
    refusal = pickle.loads(pickle.dumps(ServerOverloadedError("full", "a:1", 0.5).reworded("it is full")))
    assert (str(refusal), refusal.server, refusal.retry_after_s) == ("it is full", "a:1", 0.5)


def test_all_addresses_of_a_name_are_asked_and_new_ones_found(face: Any) -> None:
    """As a headless service has it, whose pods come and go."""
    port = ports()["grpc"]
    first, second, third = (OddServer(np.arange) for _ in range(3))
    with naming(["127.0.0.1", "127.0.0.2"]) as names, face(f"dns://127.0.0.1:{names.port}/ranker:{port}") as client:

        def ask() -> bool:
            try:
                client.score(QUERY, ["a"])
            except RankingError:  # the one that ended had the request, and there is no second name
                return False
            return True

        with odd_server(second, at=f"127.0.0.2:{port}"), odd_server(third, at=f"127.0.0.3:{port}"):
            with odd_server(first, at=f"127.0.0.1:{port}"):
                eventually(lambda: ask() and first.sizes and second.sizes)
                before = len(first.sizes), len(second.sizes)
                assert all(ask() for _ in range(10))
                assert min(len(first.sizes) - before[0], len(second.sizes) - before[1]) >= 3  # 5, but for a reconnect
                names.addresses = ["127.0.0.2", "127.0.0.3"]
            eventually(lambda: ask() and third.sizes)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1"])
def test_no_proxy_comes_between_a_client_and_its_own_machine(
    face: Any, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports()['http']}")
    with odd_server(OddServer(np.arange)) as url, face(f"{host}:{url.rpartition(':')[2]}", attempts=1) as client:
        assert client.score(QUERY, ["a", "b"]) == [0, 1]
    with face("ranker.test:9", attempts=1) as client, pytest.raises(RankingError, match=r"127\.0\.0\.1"):
        client.score(QUERY, ["a"])
