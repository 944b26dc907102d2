"""The way into the core. Its refusals are raised; after an internal failure its books are checked."""

from __future__ import annotations

import time
from typing import Any, Final

from budget import events as ev
from budget.actions import Action, Fault
from budget.books.byte_text import size
from budget.core import BudgetCore
from budget.errors import InternalError, KeepwarmError
from shim.keeper.shell.fault_counts import FaultCounts, mark_noted, text_of

_EVENT_LENGTH: Final = 500


class Feed:
    """Gives events to the core. After a failure of the core its books are checked."""

    def __init__(self, core: BudgetCore, faults: FaultCounts) -> None:
        self._core = core
        self._faults = faults
        self._checked_at: float | None = None
        self._disagreement = ""

    def handle(self, event: ev.Event, *, again: bool = False) -> list[Action]:
        """Give an event to the core; returns the actions to carry out.

        Args:
            event: the event.
            again: whether the core failed at it before, which is logged already.

        Raises:
            KeepwarmError: the core refuses it; nothing changed.
            InternalError: the core failed; logged and counted here.
        """
        failure: Exception
        try:
            return self._core.handle(event, time.monotonic())
        except InternalError as error:
            failure = error
        except KeepwarmError:
            raise
        except Exception as error:
            failure = error
        raise self._failed(event, failure, again=again)

    def survived(self, fault: Fault) -> None:
        """Log, count and check after a failure inside the core, although the event took effect."""
        right = f" (put right: {'; '.join(fault.imbalances)})" if fault.imbalances else ""
        self._faults.note("core", f"{fault.where}{right}", fault.error)
        self._check()

    def checked(self) -> dict[str, Any] | None:
        """The result of the last check of the books, JSON-serialisable; None before any failure."""
        if self._checked_at is None:
            return None
        return {
            "agree": not self._disagreement,
            "text": self._disagreement,
            "checked_s": time.monotonic() - self._checked_at,
        }

    def _failed(self, event: ev.Event, failure: Exception, *, again: bool) -> InternalError:
        name = type(event).__name__
        if again:
            self._faults.count("core", text_of(failure))
            mark_noted(failure)
        else:
            what = f"{repr(event)[:_EVENT_LENGTH]} (books: {self._books()})"
            self._faults.note("core", what, failure)
            self._check()
        if isinstance(failure, InternalError):
            return failure
        error = InternalError(f"the keeper failed at {name}: {text_of(failure)}.")
        error.__cause__ = failure
        mark_noted(error)
        return error

    def _books(self) -> str:
        try:
            views = self._core.ledgers()
        except Exception as error:
            return f"cannot be read, {text_of(error)}"
        return ", ".join(
            f"{view.device} {size(view.reserved_bytes)} of {size(view.limit_bytes)}"
            for view in views
        )

    def _check(self) -> None:
        self._checked_at, self._disagreement = time.monotonic(), ""
        try:
            self._core.validate()
        except Exception as error:
            self._disagreement = text_of(error)
            self._faults.note("books", "checking the books after an internal error", error)
