"""Spans for an OpenTelemetry collector, over OTLP/HTTP: `pip install 'keepwarm[otlp]'`."""

from __future__ import annotations

import importlib
from typing import Final

from opentelemetry.sdk.trace.export import SpanExporter

from traces.checked import InvalidArgument, a_text

_MODULE: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def otlp_exporter(address: str) -> SpanExporter:
    """An exporter for `RunTrace(exporters=[...])`.

    Headers, certificates and time-outs come from OpenTelemetry's variables (`OTEL_EXPORTER_OTLP_*`).

    Args:
        address: of the collector, such as `http://127.0.0.1:4318`, without `/v1/traces`.

    Raises:
        InvalidArgument: that is no such address.
        ModuleNotFoundError: the package is not installed.
    """
    if not a_text("address", address).startswith(("http://", "https://")):
        raise InvalidArgument("address", address, "a collector's, such as http://127.0.0.1:4318")
    try:
        module = importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Spans for {address} need a package that is not installed ({error.name}): "
            "pip install 'keepwarm[otlp]'",
            name=error.name,
        ) from error
    exporter: SpanExporter = module.OTLPSpanExporter(endpoint=f"{address.rstrip('/')}/v1/traces")
    return exporter
