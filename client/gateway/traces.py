"""OpenTelemetry traces of rerank requests, if the environment names where they go, as that project's SDKs have it.

The ranking server is told the span in which it was asked, by the header ``traceparent`` of gRPC.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from client import DISTRIBUTION
from client.errors import DisRankerError
from client.gateway.correlation import Asked
from client.wire import METADATA, TIMES, Times

VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NAME = "disranker-gateway"  # unless OTEL_SERVICE_NAME has another


class Traces:
    """Sends spans in the background. Close it, or the last ones are lost."""

    def __init__(self) -> None:
        from opentelemetry import propagate
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or NAME})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(NAME)
        self._kinds, self._status, self._propagate = SpanKind, StatusCode, propagate

    @classmethod
    def wanted(cls) -> Traces | None:
        """None if the environment names no place for traces. Raises DisRankerError where the packages are missing."""
        named = next((name for name in VARIABLES if os.environ.get(name)), None)
        if named is None:
            return None
        try:
            return cls()
        except ModuleNotFoundError as error:
            raise DisRankerError(
                f"{named} is set, and traces need {error.name}: pip install '{DISTRIBUTION}[tracing]', or unset it"
            ) from error

    @contextmanager
    def request(self, method: str, route: str, asked: Asked) -> Iterator[None]:
        """The span of a request, in the trace of its caller if it named one."""
        caller = self._propagate.extract(asked.trace)
        named = {"http.request.method": method, "http.route": route, "disranker.request_id": asked.id}
        with self._tracer.start_as_current_span(f"{method} {route}", caller, self._kinds.SERVER, named) as span:
            self._propagate.inject(asked.trace)
            try:
                yield
            finally:
                span.set_attribute("http.response.status_code", asked.code)
                if asked.key:
                    span.set_attribute("disranker.key", asked.key)
                if asked.code >= 500:
                    span.set_status(self._status.ERROR)

    @contextmanager
    def ranking(self, model: str, documents: int) -> Iterator[None]:
        """The span of what the ranking servers do for a request, with all attempts. They are told of it, and asked
        where the time went, which becomes attributes in ms, summed up where a request goes to the servers in parts."""
        named: dict[str, Any] = {"disranker.model": model, "disranker.documents": documents}
        with self._tracer.start_as_current_span("rank", kind=self._kinds.CLIENT, attributes=named) as span:
            metadata = dict(METADATA.get())
            self._propagate.inject(metadata)
            before = METADATA.set(metadata)
            told: list[Times] | None = [] if span.is_recording() else None
            collecting = TIMES.set(told)
            try:
                yield
            finally:
                TIMES.reset(collecting)
                METADATA.reset(before)
                span.set_attributes(_summed(told or ()))

    def close(self) -> None:
        self._provider.shutdown()


def _summed(told: Iterable[Times]) -> Counter[str]:
    """Attributes such as ``disranker.student.engine_ms``."""
    parts = Counter[str]()
    for times in told:
        for name, ms in times.items():
            step = name.removesuffix("_MS").lower()
            parts.update({f"disranker.{step}.{part}_ms": value for part, value in ms.items()})
    return parts
