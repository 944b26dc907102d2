"""What follows from an engine's failure: how long it is left alone, and what requests are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from budget.books.engines import EngineRecord
from budget.books.states import State
from budget.errors import EngineDied, EngineTimeout, KeepwarmError, error_from_wire

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
_STARTS_AGAIN: Final = re.compile(r"[^.]*starts it again\.\s*")
"""The sentence of a hint that is wrong while requests are refused."""


def not_reached(engine: EngineRecord, now: float) -> KeepwarmError:
    """The error of an engine's failure as a request gets it that waited, and that is not the cause."""
    found = error_from_wire(dict(engine.last_error or {}))
    if isinstance(found, EngineDied | EngineTimeout):
        found.message += " This request had not reached it."
        found.facts["suspected"] = False
    return with_pause(found, engine, now)


def with_pause(error: KeepwarmError, engine: EngineRecord, now: float) -> KeepwarmError:
    """An error of an engine, which says how long its requests are refused where they are."""
    left_s = refused_for_s(engine, now)
    if left_s <= 0:
        return error
    error.hint = _STARTS_AGAIN.sub("", error.hint).rstrip()
    return error.in_pause(left_s, engine.failures_in_row)


def refused_for_s(engine: EngineRecord, now: float) -> float:
    """How long requests of an engine are refused: from its second failure in a row on."""
    paused = engine.state is State.FAILED and engine.failures_in_row > 1
    return max(0.0, float(engine.retry_at - now)) if paused else 0.0


def after_failure(engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
    """Remember a failure: the next try of a pinned engine waits longer each time.

    From the second in a row on requests are refused until then, too.
    """
    engine.last_error = dict(error)
    patience = FIRST_BACKOFF_S * 2.0 ** min(engine.failures_in_row - 1, 16)
    engine.retry_at = now + min(MAX_BACKOFF_S, patience)
