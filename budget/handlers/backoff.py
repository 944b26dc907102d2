"""How long an engine that failed is left alone before it is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budget.books.engines import EngineRecord

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


def after_failure(engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
    """Remember a failure: the next try of a pinned engine waits longer each time.

    From the second in a row on requests are refused until then, too.
    """
    engine.last_error = dict(error)
    patience = FIRST_BACKOFF_S * 2.0 ** min(engine.failures_in_row - 1, 16)
    engine.retry_at = now + min(MAX_BACKOFF_S, patience)
