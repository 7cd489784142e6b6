"""The view of those who run the gateway: a request's id, its key, its trace; and TLS, hosts and signals."""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.support.collectors import Span, collecting
from tests.support.gateways import ASKED, PATIENCE_S, TEI_ASKED, Gateway, gateway_running, refusal
from tests.support.odd_servers import OddServer, odd_server
from tests.support.waiting import eventually

TRACE, CALLERS = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass(frozen=True)
class Run:
    """A gateway with everything on, and what is around it."""

    gateway: Gateway
    service: OddServer
    spans: list[Span]
    folder: Path

    def post(self, route: str = "/v2/rerank", key: str = "s3cret", **headers: str) -> httpx.Response:
        asked = TEI_ASKED if route == "/rerank" else ASKED
        named = {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        url = f"{self.gateway.url}{route}"
        return httpx.post(url, json=asked, headers=named, timeout=PATIENCE_S, verify=self.gateway.tls or False)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [json.loads(line) for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder, authority, service = tmp_path_factory.mktemp("operated"), trustme.CA(), OddServer()
    certify(folder, authority)
    (folder / "keys").write_text("search s3cret\n")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    flags = [f"--{name}={folder / name}" for name in ("tls_certificate", "tls_key")]
    flags += ["--log_format", "json", "--allowed_hosts", "127.0.0.1,*.example.org", "--keep_alive", "1"]
    with pytest.MonkeyPatch.context() as environment, odd_server(service) as url, collecting() as (collector, spans):
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms
        environment.setenv("DISRANKER_GATEWAY_KEY_FILE", str(folder / "keys"))
        with gateway_running(folder / "log", "--servers", url, *flags, tls=trusting) as gateway:
            yield Run(gateway, service, spans, folder)


def certify(folder: Path, authority: trustme.CA, key: bool = True) -> None:
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(folder / "tls_certificate")
    if key:
        leaf.private_key_pem.write_to_path(folder / "tls_key")


def test_the_id_of_a_request_is_everywhere(operated: Run) -> None:
    answer = operated.post(X_Request_Id="checkout-17")
    assert answer.headers["X-Request-Id"] == operated.service.id == operated.service.metadata["x-request-id"]
    (line,) = [line for line in operated.lines() if line.get("request_id") == "checkout-17"]
    assert (line["path"], line["status"], line["key"], line["level"]) == ("/v2/rerank", 200, "search", "info")
    made = set()
    for given in ("", "two words", "x" * 129, "a;b"):
        refused = operated.post("/rerank", key="wrong", X_Request_Id=given)
        made.add(refused.headers["X-Request-Id"])
        assert refusal(refused, 401) and refused.json()["request_id"] == refused.headers["X-Request-Id"] != given
    assert len(made) == 4
    assert operated.gateway.metrics("disranker_gateway_key_requests_total", key="search", code="200") >= 1
    assert not any(key in operated.gateway.log.read_text() for key in ("s3cret", "wrong"))


def test_a_trace_goes_from_the_caller_to_the_server(operated: Run) -> None:
    operated.post(traceparent=f"00-{TRACE}-{CALLERS}-01", tracestate="vendor=1").raise_for_status()
    eventually(lambda: sum(span.trace == TRACE for span in operated.spans) == 2)
    ranking, request = sorted((span for span in operated.spans if span.trace == TRACE), key=lambda span: span.name)[
        ::-1
    ]
    assert (request.name, request.parent, request.attributes["http.response.status_code"]) == (
        "POST /v2/rerank", CALLERS, 200
    )  # fmt: skip
    assert (ranking.name, ranking.parent, ranking.attributes["disranker.documents"]) == ("rank", request.id, 2)
    assert ranking.attributes["disranker.tokenizer.tokenising_ms"] == 1.0
    assert ranking.attributes["disranker.student.engine_ms"] == 3.0
    assert operated.service.metadata["traceparent"] == f"00-{TRACE}-{ranking.id}-01"
    assert operated.service.metadata["tracestate"] == "vendor=1"
    assert any(line.get("trace_id") == TRACE for line in operated.lines())
    for malformed in ("", f"00-{'0' * 32}-{CALLERS}-01", f"00-{TRACE}-{CALLERS}"):
        operated.post(traceparent=malformed).raise_for_status()
        assert TRACE not in operated.service.metadata["traceparent"]


def test_hosts_that_are_not_ours(operated: Run) -> None:
    for host, code in (("rank.example.org:443", 200), ("127.0.0.1", 200), ("evil.test", 400), ("example.org", 400)):
        answer = operated.post(Host=host)
        assert answer.status_code == code
    assert "--allowed_hosts" in refusal(answer, 400)
    for probe in ("livez", "readyz", "health"):  # Kubernetes sends the pod's address
        url, headers = f"{operated.gateway.url}/{probe}", {"Host": "10.0.0.7:8080"}
        httpx.get(url, headers=headers, verify=operated.gateway.tls or False, timeout=PATIENCE_S).raise_for_status()


def test_an_idle_connection_is_closed_in_the_time_that_was_set(operated: Run) -> None:
    with httpx.Client(verify=operated.gateway.tls or False, timeout=PATIENCE_S) as client:
        client.get(f"{operated.gateway.url}/v1/models").raise_for_status()
        eventually(lambda: operated.gateway.metrics("disranker_gateway_connections") == 1)  # the one that asks


def test_keys_and_certificates_are_read_again(operated: Run) -> None:
    assert operated.post(key="n3w").status_code == 401
    (operated.folder / "keys").write_text("search s3cret\nnew n3w 0.001\n")
    certify(operated.folder, stranger := trustme.CA())
    operated.gateway.process.send_signal(signal.SIGHUP)
    trusting = ssl.create_default_context()
    stranger.configure_trust(trusting)

    def ask(key: str) -> int:
        url, headers = f"{operated.gateway.url}/v2/rerank", {"Authorization": f"Bearer {key}"}
        return httpx.post(url, json=ASKED, headers=headers, verify=trusting, timeout=PATIENCE_S).status_code

    eventually(lambda: any(line["message"] == "read 2 keys" for line in operated.lines()))
    assert [ask("n3w"), ask("n3w"), ask("s3cret")] == [200, 429, 200]
    certify(operated.folder, stranger, key=False)  # whose key is another one
    operated.gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: any("the certificate stays as it was" in line["message"] for line in operated.lines()))
    assert ask("s3cret") == 200
