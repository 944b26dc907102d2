"""Attempts that may fail without harm: a failure with KV state costs one prompt evaluation."""

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
"""Errors of a refusing engine, a full disk or a malformed answer: each is logged in one line."""


class Attempts:
    """Runs work that may fail, and logs its failures."""

    def __init__(self, faults: FaultCounts) -> None:
        self._faults = faults

    async def tried(
        self, work: Awaitable[_T], what: str, limit_s: float | None = None
    ) -> _T | None:
        """The result of some work, or None when it failed or took too long.

        Args:
            work: may fail.
            what: the work in words, as the beginning of a sentence.
            limit_s: the work is cancelled after so many seconds; None where another bound holds.
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
