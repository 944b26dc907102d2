"""What follows from an engine's failure: how long it is left alone, and what requests are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budget.books.engines import EngineRecord
from budget.errors import EngineDied, EngineTimeout, KeepwarmError, error_from_wire

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


def not_reached(error: Mapping[str, Any]) -> KeepwarmError:
    """The error of an engine as a request gets it that waited, and that is not the cause."""
    found = error_from_wire(dict(error))
    if isinstance(found, EngineDied | EngineTimeout):
        found.message += " This request had not reached it."
        found.facts["suspected"] = False
    return found


def in_pause(engine: EngineRecord, now: float) -> KeepwarmError:
    """The error of a request that comes before the next try of its engine."""
    error = not_reached(engine.last_error or {})
    if isinstance(error, EngineDied | EngineTimeout):
        # Their hint is for the request that was cut off: that the next one starts the engine.
        error.hint = "Its last lines are in `log_tail`." if error.facts.get("log_tail") else ""
    return error.in_pause(engine.retry_at - now, engine.failures_in_row)


def after_failure(engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
    """Remember a failure: the next try of a pinned engine waits longer each time.

    From the second in a row on requests are refused until then, too.
    """
    engine.last_error = dict(error)
    patience = FIRST_BACKOFF_S * 2.0 ** min(engine.failures_in_row - 1, 16)
    engine.retry_at = now + min(MAX_BACKOFF_S, patience)
