"""What OpenTelemetry's OTLP exporters log while they export: a line for each try that fails.

It is heard by what exports instead, which says a failure once. Lines of a program's own exporters stay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOGGERS: Final = tuple(
    logging.getLogger(f"opentelemetry.exporter.otlp.proto.http.{kind}_exporter")
    for kind in ("metric", "trace")
)

_TRIED: Final = "Transient error "
_RETRIED: Final = " encountered while exporting"
_LONGEST: Final = 300


class _Hearing(threading.local):
    heard: list[str] | None = None


_here: Final = _Hearing()


def _passes(record: logging.LogRecord) -> bool:
    if _here.heard is None:
        return True
    _here.heard.append(record.getMessage())
    return False


for _logger in _LOGGERS:
    _logger.addFilter(_passes)


@contextmanager
def exporter_logs_heard() -> Iterator[list[str]]:
    """What the exporters log in this thread until it is left, in place of their lines in any log."""
    before, _here.heard = _here.heard, []
    try:
        yield _here.heard
    finally:
        _here.heard = before


def why_of(heard: list[str]) -> str:
    """Why an export failed: the first line of what was heard, without what is done about it."""
    first = heard[0].partition("\n")[0] if heard else "it does not say why"
    return first.partition(_RETRIED)[0].removeprefix(_TRIED)[:_LONGEST]
