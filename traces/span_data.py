"""A finished span as every sink gets it: the trace's file and the OpenTelemetry exporters."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from traces.text import Value


class SpanData(NamedTuple):
    """One finished span. Times are epoch nanoseconds; `end_ns` is not before `start_ns`.

    `parent_id` is 0 for the run's own span. `granted_ns` is when a request got its lease, `failure` the
    message of one that failed, `links` the spans that it is linked to, and `owner` the thread or task that
    opened it (None where its times were known already).
    """

    name: str
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    granted_ns: int | None = None
    failure: str | None = None
    links: tuple[int, ...] = ()
    owner: Hashable = None
