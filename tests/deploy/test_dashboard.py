"""The dashboard and the alerts of deploy/, asked of a real Prometheus that scrapes the running server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client import InvalidRequestError, RankingClient
from tests.support.prometheus import DEPLOY, Prometheus, command, scraping
from tests.support.servers import Server, ports

BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/disranker.json").read_text(encoding="utf-8"))
VARIABLES = {"$instance": ".*", "$model": ".*ranker.*", "$__rate_interval": "1m"}
# Where nothing exports it: a GPU, a server started with --metrics-config=summary_latencies=true, a gateway.
EMPTY = {"Time / Quantiles of a request", "Machine / GPU", "Machine / GPU memory", "Machine / GPU power"}
EMPTY_ROW = "Gateway / "
REQUESTS, DOCUMENTS = 12, 5
FAILURES = 2  # one request, which the tokenizer refuses: Triton 2.51 counts it twice for the ensemble
COUNTED = {
    'sum(nv_inference_request_success{model="ranker"})': REQUESTS,
    'sum(nv_inference_request_failure{model="ranker"})': FAILURES,
    "sum(disranker_document_cache_lookups)": REQUESTS * DOCUMENTS,
}

Shown = dict[str, dict[str, float]]


def panels() -> dict[str, dict[str, Any]]:
    """The panels that show something, by row and title."""
    row, found = "", {}
    for panel in BOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            found[f"{row} / {panel['title']}"] = panel
    return found


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = {"localhost:8002": server.metrics_url.split("/")[2], "localhost:8080": f"127.0.0.1:{ports()['http']}"}
    with scraping(targets, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def longest_s(server: Server, prometheus: Prometheus) -> float:
    """The longest of REQUESTS requests that Prometheus has counted since it came, as the client saw it."""
    prometheus.wait_for("count(nv_inference_request_success)", 1)
    before = {counter: sum(prometheus.values(counter).values()) for counter in COUNTED}
    times = []
    with RankingClient(server.url) as client:
        for _ in range(REQUESTS):
            start = time.perf_counter()
            client.rank("watched bridge", [f"watched garden {number}" for number in range(DOCUMENTS)])
            times.append(time.perf_counter() - start)
        with pytest.raises(InvalidRequestError):
            client.rank("watched bridge", ["x" * 1_500_000])
    for counter, count in COUNTED.items():
        prometheus.wait_for(counter, before[counter] + count)
        assert sum(prometheus.values(counter).values()) == before[counter] + count
    return max(times)


@pytest.fixture(scope="module")
def shown(prometheus: Prometheus, longest_s: float) -> Shown:
    """The values of every panel at the same time."""
    now = time.time()
    return {
        name: {
            f"{target['refId']} {series}".strip(): value
            for target in panel["targets"]
            for series, value in prometheus.values(filled_in(target["expr"]), now).items()
        }
        for name, panel in panels().items()
    }


def test_every_panel_shows_something(shown: Shown) -> None:
    empty = {name for name, values in shown.items() if not values}
    assert empty == {name for name in shown if name in EMPTY or name.startswith(EMPTY_ROW)}


def test_rates_and_shares_are_those_of_the_requests_made(shown: Shown) -> None:
    requests, failed = shown["At a glance / Requests"]["A"], shown["At a glance / Failed"]["A"]
    assert shown["At a glance / Documents"]["A"] == pytest.approx(DOCUMENTS * requests, rel=0.3)
    assert failed == pytest.approx(FAILURES / (REQUESTS + FAILURES), rel=0.3)
    assert shown["Traffic / Failures"]["A ranker OTHER"] == pytest.approx(FAILURES / REQUESTS * requests, rel=0.3)
    assert shown["Traffic / Requests"]["A ranker"] == pytest.approx(requests)
    assert 0.5 < shown["At a glance / Token cache hits"]["A"] < 1  # each process meets the documents once
    assert shown["At a glance / Servers that serve"] == {"A": 1, "B": 1}
    versions = {f"A {model} 1" for model in ("ranker", "ranker_tokens", "tokenizer", "student", "scores")}
    assert shown["Traffic / Versions"] == dict.fromkeys(versions, 1)


def test_times_add_up(shown: Shown, longest_s: float) -> None:
    mean_s, steps = shown["At a glance / Mean time"]["A"], shown["Time / Mean time by step"]
    assert 0 < mean_s < longest_s
    assert steps.keys() == {"A tokenizer", "A student"}
    assert 0 < sum(steps.values()) < 1.3 * mean_s
    for part in ("queue", "compute"):
        times = shown[f"Time / Mean {part} time by step"]
        assert times.keys() == steps.keys() and all(0 < times[step] < steps[step] for step in steps)


def test_shares_are_shares(shown: Shown) -> None:
    shares = {name for name, panel in panels().items() if panel["fieldConfig"]["defaults"]["unit"] == "percentunit"}
    assert {"Machine / Processors", "Machine / Memory", "Time / Share of the time in queues"} < shares
    assert all(0 <= value <= 1 for name in shares for value in shown[name].values())
    assert shown["Student and token cache / Rows per call"]["A student"] >= 1


def test_alerts_are_evaluated_and_only_those_with_a_cause_are_raised(prometheus: Prometheus, longest_s: float) -> None:
    rules = {rule["name"]: rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]}
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules.values()} <= {("ok", ""), ("unknown", "")}
    raised = {name for name, rule in rules.items() if prometheus.values(rule["query"])}
    timed = {"RankingSlowOnAverage", "RankingQueues", "RankingPilesUp", "RankingMemory"}  # the machine's business
    assert raised - timed == {"RankingFails", "GatewayDown"}, "a request was refused, and there is no gateway"


def test_promtool_takes_the_files_and_each_alert_fires_on_its_cause() -> None:
    checks = {"check config": DEPLOY / "prometheus.yml", "check rules": DEPLOY / "alerts.yml",
              "test rules": Path(__file__).with_name("alerts.yml")}  # fmt: skip
    for check, path in checks.items():
        done = subprocess.run([command("promtool"), *check.split(), str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + line) for column in range(place["w"]) for line in range(place["h"])}
        assert max(column for column, _ in cells) < 24 and not cells & taken, panel["title"]
        taken |= cells


def test_the_scaling_asks_for_what_servers_tell(prometheus: Prometheus, longest_s: float) -> None:
    scaling, _ = yaml.safe_load_all((DEPLOY / "kubernetes/scaling/scaling.yml").read_text(encoding="utf-8"))
    queries = {one["name"]: one["metadata"]["query"] for one in scaling["spec"]["triggers"]}
    (busy,), (queued_ms,) = (prometheus.values(queries[name]).values() for name in ("engine-busy", "queue"))
    assert busy > 0 and 0 < queued_ms < 1000 * longest_s
    for query in queries.values():  # an idle model asks for no server, and one that nobody scrapes is not idle
        assert [*prometheus.values(query.replace('"student"', '"ranker_tokens"')).values()] == [0]
        assert not prometheus.values(query.replace('"disranker"', '"nobody"'))
