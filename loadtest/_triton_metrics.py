"""The queue and compute times inside the server, by Triton's Prometheus endpoint."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from loadtest._records import ModelTimes

PATIENCE_S = 5.0
REQUESTS, BATCHES = "nv_inference_request_success", "nv_inference_exec_count"
QUEUE = "nv_inference_queue_duration_us"
COMPUTE = tuple(f"nv_inference_compute_{part}_duration_us" for part in ("input", "infer", "output"))
WANTED = {REQUESTS, BATCHES, QUEUE, *COMPUTE}

Counters = Mapping[str, Mapping[str, float]]  # model -> metric -> its sum over versions and devices


class MetricsError(Exception):
    """The endpoint does not answer, or is not Triton's."""


def read_counters(url: str) -> Counters:
    """Read the counters of all models. Raises MetricsError."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            text = answer.read().decode("utf-8", "replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise MetricsError(f"no metrics at {url}: {reason}; --metrics-url names Triton's, or is empty") from error
    counters = parse(text)
    if not counters:
        raise MetricsError(f"no metrics of Triton's models at {url}: --metrics-url names its endpoint, or is empty")
    return counters


def parse(text: str) -> Counters:
    """Parse Prometheus' text format. Raises MetricsError for any other text."""
    counters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    try:
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                name = name.removesuffix("_total")  # which the parser puts on counters
                if name in WANTED and "model" in labels:
                    counters[labels["model"]][name] += value
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsError(f"not the text of Prometheus: {error}") from error
    return counters


def between(before: Counters, after: Counters) -> tuple[ModelTimes, ...]:
    """Means over the requests between two readings, for the models that answered any."""
    found = []
    for model in sorted(after):
        grown = {name: after[model].get(name, 0.0) - before.get(model, {}).get(name, 0.0) for name in WANTED}
        if (requests := grown[REQUESTS]) <= 0:
            continue
        found.append(
            ModelTimes(
                model=model,
                requests=int(requests),
                queue_ms=grown[QUEUE] / requests / 1000,
                compute_ms=sum(grown[name] for name in COMPUTE) / requests / 1000,
                requests_per_batch=requests / grown[BATCHES] if grown[BATCHES] > 0 else 1.0,
            )
        )
    return tuple(found)


def default_url(host: str) -> str:
    """The default address of Triton's metrics, for the first of ``host:port,host:port`` of gRPC."""
    name = host.split(",")[0].rpartition(":")[0]
    return f"http://{name}:8002/metrics"
