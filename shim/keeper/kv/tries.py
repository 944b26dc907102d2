"""Trying what may fail without harm: what goes wrong with KV state costs a prompt evaluation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from budget.errors import InternalError, KeepwarmError
from shim.keeper.shell.fault_counts import FaultCounts, text_of

LOG = logging.getLogger("keepwarm.keeper")

_T = TypeVar("_T")

_ORDINARY = (KeepwarmError, OSError, KeyError, TypeError, ValueError)
"""An engine that refuses, a disk that is full, an answer of another shape: one line each."""


class Tries:
    """Runs what may fail, and says what did."""

    def __init__(self, faults: FaultCounts) -> None:
        self._faults = faults

    async def tried(
        self, work: Awaitable[_T], what: str, limit_s: float | None = None
    ) -> _T | None:
        """The outcome of some work, or None when it failed or took too long.

        Args:
            work: what may fail.
            what: it, as the beginning of a sentence.
            limit_s: after it the work is cancelled; None where another bound holds.
        """
        me = asyncio.current_task()
        try:
            async with asyncio.timeout(limit_s) as bound:
                return await work
        except asyncio.CancelledError as error:
            if me is not None and me.cancelling():
                raise
            self._faults.note("kv", what, error)
        except Exception as error:
            if bound.expired():
                LOG.warning("%s took over %g s", what, limit_s)
            elif isinstance(error, _ORDINARY) and not isinstance(error, InternalError):
                LOG.warning("%s failed: %s", what, error)
                self._faults.count("kv", f"{what} failed: {text_of(error)}")
            else:
                self._faults.note("kv", what, error)
        return None
