"""The metrics of /metrics: counts and times, never text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client import AsyncRankingClient, Scores

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics of one gateway. Each has a registry, so that several gateways can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "disranker_gateway_requests", "Answered, by status code; 499 is a client that had gone",
            ["route", "code"], registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "disranker_gateway_request_seconds", "From the first byte to the last of the answer",
            ["route"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "disranker_gateway_requests_in_flight", "Requests that are being worked on", registry=self._registry
        )
        self._of_keys = Counter(
            "disranker_gateway_key_requests", "Answered, of those with a key, by its name", ["key", "code"],
            registry=self._registry,
        )  # fmt: skip
        self.connections = Gauge("disranker_gateway_connections", "Open, of callers", registry=self._registry)
        self.connections_closed = Counter(
            "disranker_gateway_connections_closed", "Of callers, before they had what they came for",
            ["reason"], registry=self._registry,
        )  # fmt: skip
        self._documents = self._per_model("documents", "Scored")
        self._pieces = self._per_model("pieces", "Scored pieces of documents: the documents, unless they are cut up")
        self._truncated = self._per_model("truncated_documents", "Longer, with their query, than the model reads")

    def answered(self, route: str, code: int, seconds: float, key: str) -> None:
        """Count a request, with the name of its key if it had one."""
        self._requests.labels(route, code).inc()
        self._seconds.labels(route).observe(seconds)
        if key:
            self._of_keys.labels(key, code).inc()

    def count(self, model: str, scores: Scores, pieces: int) -> None:
        """Count a request that was scored."""
        self._documents.labels(model).inc(len(scores.logits))
        self._pieces.labels(model).inc(pieces)
        self._truncated.labels(model).inc(int(scores.truncated.sum()))

    def watch(self, clients: Mapping[str, AsyncRankingClient]) -> None:
        """Show what the clients, by their models' names, know of their servers."""
        self._registry.register(_Servers(clients))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _per_model(self, name: str, description: str) -> Counter:
        return Counter(f"disranker_gateway_{name}", description, ["model"], registry=self._registry)


class _Servers(Collector):
    """The state of the ranking servers, as the clients see it when they are asked."""

    def __init__(self, clients: Mapping[str, AsyncRankingClient]) -> None:
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        aside = GaugeMetricFamily(
            "disranker_gateway_server_aside", "1: gets requests only if no other is free", labels=["model", "server"]
        )
        faults = CounterMetricFamily(
            "disranker_gateway_server_faults", "Requests that a server failed", labels=["model", "server", "fault"]
        )
        second = CounterMetricFamily(
            "disranker_gateway_second_requests", "Retries and hedges to ranking servers", labels=["model"]
        )
        for model, client in self._clients.items():
            second.add_metric([model], client.second_requests)
            for name, server in {server.server: server for server in client.health()}.items():
                aside.add_metric([model, name], server.aside)
                for fault, count in server.faults.items():
                    faults.add_metric([model, name, fault], count)
        yield from (aside, faults, second)
