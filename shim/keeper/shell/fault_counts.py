"""Faults inside the keeper: logged once, counted by kind, shown in its status."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

LOG = logging.getLogger("keepwarm.keeper")

RAISED: Final = (Exception, asyncio.CancelledError)
"""The exceptions to catch where later steps have to follow any failure."""
LINES_A_MINUTE: Final = 20
"""Beyond so many a minute, faults of a kind are counted without a line."""

_MINUTE_S: Final = 60.0
_TEXT_LENGTH: Final = 300
_NOTED: Final = "_keepwarm_noted"


@dataclass(slots=True)
class CountedFault:
    """All faults of one kind. Times are monotonic seconds."""

    count: int = 0
    text: str = ""
    first_at: float = 0.0
    last_at: float = 0.0
    unlogged: int = 0
    logged: list[float] = field(default_factory=list)
    """The times of its lines in the last minute."""


class FaultCounts:
    """The faults of one keeper since its start."""

    def __init__(self) -> None:
        self._kinds: dict[str, CountedFault] = {}

    def note(self, kind: str, what: str, error: BaseException) -> None:
        """Log an error with its traceback, and count it; never raises.

        An error that passes several callers is noted only by the first of them.

        Args:
            kind: the kind to count it under.
            what: the failed work, as the beginning of a sentence.
            error: the error.
        """
        if is_noted(error):
            return
        mark_noted(error)
        fault = self.count(kind, text_of(error))
        if self._may_log(fault):
            more = f" ({fault.unlogged} more of {kind} were not logged)" if fault.unlogged else ""
            LOG.error("%s failed: %s%s", what, fault.text, more, exc_info=error)
            fault.unlogged = 0
        else:
            fault.unlogged += 1

    def count(self, kind: str, text: str) -> CountedFault:
        """Count a fault of a kind, without a line."""
        now = time.monotonic()
        fault = self._kinds.setdefault(kind, CountedFault(first_at=now))
        fault.count += 1
        fault.text, fault.last_at = text, now
        return fault

    @staticmethod
    def _may_log(fault: CountedFault) -> bool:
        since = fault.last_at - _MINUTE_S
        fault.logged = [at for at in fault.logged if at > since]
        if len(fault.logged) >= LINES_A_MINUTE:
            return False
        fault.logged.append(fault.last_at)
        return True

    def rows(self) -> list[dict[str, Any]]:
        """The faults by kind, the latest first, JSON-serialisable; `last_s` is seconds ago."""
        now = time.monotonic()
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1].last_at)
        return [
            {"kind": kind, "count": fault.count, "text": fault.text, "last_s": now - fault.last_at}
            for kind, fault in kinds
        ]


def text_of(error: BaseException) -> str:
    """An error in one line of bounded length."""
    try:
        said = str(error)
    except Exception:
        said = "(it cannot be printed)"
    first = said.partition("\n")[0][:_TEXT_LENGTH]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def mark_noted(error: BaseException) -> None:
    """Mark an error as logged, so that later handlers do not log it again."""
    setattr(error, _NOTED, True)


def is_noted(error: BaseException) -> bool:
    """Whether an error was logged already."""
    return getattr(error, _NOTED, False) is True
