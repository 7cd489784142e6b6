"""A collector of OpenTelemetry's traces, for tests: OTLP over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """Ids in hexadecimal; of the attributes, those that are texts or numbers."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str | float]


@contextmanager
def collecting() -> Iterator[tuple[str, list[Span]]]:
    """The address, and the spans that came so far."""
    spans: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            scopes = [scope for resource in sent.resource_spans for scope in resource.scope_spans]
            for span in (span for scope in scopes for span in scope.spans):
                values = {one.key: one.value for one in span.attributes}
                known = {
                    name: each.string_value or each.int_value or each.double_value for name, each in values.items()
                }
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                spans.append(Span(span.name, *ids, known))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
