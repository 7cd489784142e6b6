"""Numbers of this process in Triton's ``/metrics``, and which requests ask for their own. A link to this file lies in
the tokenizer's folder, because Triton shows a model its own folder only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

WANTS_TIMES = "times"  # a request's parameter
COUNTER, GAUGE = "COUNTER", "GAUGE"  # by name: the process that only reads a model's configuration has no metrics


class Metrics:
    """Metrics by name, each with its description and its kind. For one thread: each new value is a message to Triton's
    process, which a request would wait for."""

    def __init__(self, args: Mapping[str, str], described: Mapping[str, tuple[str, str]]) -> None:
        self._model = args["model_name"]
        labels = {
            "model": self._model,
            "version": args["model_version"],
            "instance": args["model_instance_name"],
            # A model that is reloaded is there before the old one goes. With equal labels the two would
            # share Triton's metric, which the old one frees. The next number of the new one then ends up anywhere in
            # the server's memory.
            "process": str(os.getpid()),
        }
        self._families = {
            name: pb_utils.MetricFamily(f"disranker_{name}", description, getattr(pb_utils.MetricFamily, kind))
            for name, (description, kind) in described.items()
        }
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._kinds = {name: kind for name, (_, kind) in described.items()}
        self._shown = dict.fromkeys(described, 0.0)

    def show(self, **values: float) -> None:
        """Give metrics these values; those of counters are totals. The caller's thread goes on if Triton refuses."""
        try:
            for name, value in values.items():
                if value != self._shown[name]:
                    metric = self._metrics[name]
                    metric.increment(value - self._shown[name]) if self._kinds[name] == COUNTER else metric.set(value)
                    self._shown[name] = value
        except pb_utils.TritonModelException as error:
            pb_utils.Logger.log_warn(f"{self._model}: the metrics could not be shown: {error}")

    def close(self) -> None:
        """To be called while Triton still answers: metrics that go later crash this process."""
        del self._metrics  # before their families, which would take them along
        del self._families


def wants_times(parameters: str) -> bool:
    """Whether a request's parameters, which are JSON, ask where its time goes."""
    return bool(parameters) and json.loads(parameters).get(WANTS_TIMES) is True
