"""The gateway before servers that are overloaded, hang or break, and for callers that do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from client.gateway.app import create_app
from client.gateway.keys import Keys
from client.gateway.metrics import Metrics
from client.gateway.settings import read
from tests.support.gateways import ASKED, TEI_ASKED, Gateway, asking, gateway_running, refusal
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.waiting import PATIENCE_S, eventually

CALLS = 20


@dataclass(frozen=True)
class Odd:
    """A gateway whose model ``one`` is served by a server of its own, and ``pair`` by two."""

    gateway: Gateway
    one: OddServer
    pair: tuple[OddServer, OddServer]

    def post(self, model: str, route: str = "/v2/rerank", **settings: Any) -> httpx.Response:
        asked = {**(TEI_ASKED if route == "/rerank" else ASKED), "model": model}
        return httpx.post(f"{self.gateway.url}{route}", json=asked, **settings)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    services = [OddServer() for _ in range(3)]
    log = tmp_path_factory.mktemp("odd") / "log"
    with odd_server(services[0]) as one, odd_server(services[1]) as two, odd_server(services[2]) as three:
        models = f"one=ranker@{one},pair=ranker@{two},{three}"
        with gateway_running(log, "--models", models, "--timeout", "20") as gateway:
            yield Odd(gateway, services[0], (services[1], services[2]))


@pytest.mark.parametrize(("wait", "seconds"), [("3.2", "4"), ("0.004", "1"), ("7", "7")])
def test_an_overloaded_server_says_when_to_come_back(odd: Odd, wait: str, seconds: str) -> None:
    odd.one.act = refusing(grpc.StatusCode.UNAVAILABLE, f"too much to do: retry in {wait} s")
    for route in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = odd.post("one", route)
        assert f"retry in {wait} s" in refusal(answer, 503)
        assert answer.headers["Retry-After"] == seconds
    assert answer.json()["error_type"] == "Overloaded"
    assert odd.gateway.metrics("disranker_gateway_server_faults_total", model="one", fault="overloaded") >= 3


@pytest.mark.parametrize("name", ["X-Request-Timeout-Ms", "x-envoy-expected-rq-timeout-ms"])
def test_the_server_is_told_how_long_the_caller_waits(odd: Odd, name: str) -> None:
    odd.one.act = lambda context: None
    for limit_ms, most_us in (("15000", 15e6), ("1e300", 20e6), ("0.5", 0)):
        answer = odd.post("one", headers={name: limit_ms})
        if most_us:
            answer.raise_for_status()
            assert most_us / 10 < odd.one.parameters[-1]["timeout"] <= most_us
        else:
            assert "time limit" in refusal(answer, 504)
    odd.post("one").raise_for_status()
    assert 2e6 < odd.one.parameters[-1]["timeout"] <= 20e6
    assert odd.one.parameters[-1]["priority"] == 1
    odd.one.act = held = Held()
    eventually(lambda: "within" in refusal(odd.post("one", headers={name: "1000"}), 504) and held.held.is_set())
    assert held.gone.wait(PATIENCE_S)


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_time_limit_is_a_number_above_0(odd: Odd, limit: str) -> None:
    for route in ("/v1/rerank", "/rerank"):
        message = refusal(odd.post("one", route, headers={"X-Request-Timeout-Ms": limit}), 422)
        assert message.startswith("x-request-timeout-ms: Input should be")


def test_a_request_whose_caller_has_gone_is_cancelled_at_the_server(odd: Odd) -> None:
    odd.one.act = held = Held()
    with asking(odd.gateway, "/v2/rerank", {**ASKED, "model": "one"}):
        assert held.held.wait(PATIENCE_S)
    assert held.gone.wait(PATIENCE_S)


def test_a_broken_server_costs_nobody_an_answer(odd: Odd) -> None:
    broken, well = odd.pair
    broken.act = refusing(grpc.StatusCode.INTERNAL, "Stub process 'student_0_0' is not healthy.")
    for _ in range(CALLS):
        odd.post("pair").raise_for_status()
    assert (broken.sizes.count(2), well.sizes.count(2)) == (1, CALLS)

    def shown(name: str, **labels: str) -> float:
        return odd.gateway.metrics(f"disranker_gateway_{name}", model="pair", **labels)

    assert (shown("server_aside"), shown("second_requests_total")) == (1, 1)
    assert shown("server_faults_total", fault="broken") >= 1
    broken.act = lambda context: None
    eventually(lambda: odd.post("pair").is_success and broken.sizes.count(2) > 1)
    assert shown("server_aside") == 0


def test_a_fault_of_the_gateway_itself_has_the_body_of_all_errors() -> None:
    def broken() -> None:
        raise RuntimeError

    async def ask() -> httpx.Response:
        settings = read([])
        app = create_app(settings, Keys(settings), Metrics())
        app.add_api_route("/broken", broken)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/broken")

    assert refusal(asyncio.run(ask()), 500) == "the gateway failed: its log says why"
