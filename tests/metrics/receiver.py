"""An OTLP receiver: OpenTelemetry's own messages over HTTP, kept as they arrive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

MESSAGES: dict[str, tuple[Any, Any]] = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
}


class Receiver:
    """Listens on a free port of this machine.

    Args:
        hangs: it answers only when it is left.
        says: what it answers instead of HTTP as it should be.
    """

    def __init__(self, *, hangs: bool = False, says: bytes | None = None) -> None:
        self.arrived: list[tuple[str, Any]] = []
        self.asked = threading.Event()
        self.says = says
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.set()
                if hangs:
                    receiver._over.wait(60)
                    return
                if receiver.says is not None:
                    self.wfile.write(receiver.says)
                    return
                asked, answered = MESSAGES[self.path]
                receiver.arrived.append((self.path, asked.FromString(body)))
                answer = answered().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> Iterator[tuple[Any, Any, Any]]:
        """Every span, with its resource and its scope."""
        for path, message in self.arrived:
            if path == "/v1/traces":
                for resource in message.resource_spans:
                    for scope in resource.scope_spans:
                        yield from ((span, resource, scope) for span in scope.spans)

    def metrics(self) -> dict[str, Any]:
        """Every metric by name, as it last arrived."""
        found: dict[str, Any] = {}
        for path, message in self.arrived:
            if path == "/v1/metrics":
                for resource in message.resource_metrics:
                    for scope in resource.scope_metrics:
                        found |= {metric.name: metric for metric in scope.metrics}
        return found


def attributes(told: Any) -> dict[str, Any]:
    """The attributes of a span, a resource or a point."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in told.attributes}
