"""A span around a piece of work, for one `with`."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from traces import names
from traces.checked import EnteredTwice
from traces.current import owner
from traces.records import OwnSpan
from traces.text import failure_attributes, snapshot

if TYPE_CHECKING:
    from traces.recording.run_recording import RunRecording

NOT_SAMPLED: Final = 0
"""The id of a span that is not recorded, nor is anything in it."""


open_span: ContextVar[tuple[RunRecording, int] | None] = ContextVar("keepwarm_span", default=None)
"""The innermost span that is open here, with its run."""


class SpanHandle:
    """A span around a piece of work, for one `with`."""

    def __init__(
        self, run: RunRecording, name: str, start_ns: int | None, attributes: dict[str, Any]
    ) -> None:
        self._run = run
        self._name = name
        self._start_ns = start_ns
        self._began_ns = 0
        self._characters = 0
        self._attributes = attributes
        self._token: Token[tuple[RunRecording, int] | None] | None = None
        self._ids = (NOT_SAMPLED, NOT_SAMPLED)
        self._owner: Hashable = None
        self._thread = ""
        self._pid = 0

    def set(self, **attributes: object) -> None:
        """Add attributes to the span."""
        kept, count = snapshot(attributes)
        self._attributes.update(kept)
        self._characters += count

    def __enter__(self) -> Self:
        run = self._run
        if not run.active:
            return self
        if self._token is not None:
            raise EnteredTwice(
                f"The span {self._name!r}", "Make one by `run.span` for each `with`."
            )
        self._began_ns = time.monotonic_ns() if self._start_ns is None else self._start_ns
        self._pid = os.getpid()
        self._owner, self._thread = owner()
        self._ids = run.begin_span(self._owner, self._began_ns)
        if self._ids[0] != NOT_SAMPLED:
            self._attributes, self._characters = snapshot(self._attributes)
        self._token = open_span.set((run, self._ids[0]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        token, self._token = self._token, None
        if token is None:
            return
        reset_span(token)
        # A child that was forked within the span is not what ends it.
        if self._ids[0] == NOT_SAMPLED or self._pid != os.getpid():
            return
        if not self._run.active:
            self._run.outlived(self._name)
            return
        ended_ns = time.monotonic_ns()
        failed = error is not None and not isinstance(error, GeneratorExit)
        # A copy: `set` may be called while this record still waits.
        told = {names.THREAD: self._thread, **self._attributes}
        if failed:
            told |= failure_attributes(error)
        span_id, parent = self._ids
        span = OwnSpan(self._name, span_id, self._began_ns, ended_ns, told, failed, self._owner)
        self._run.end_span(span, parent, self._characters)


def reset_span(token: Token[tuple[RunRecording, int] | None]) -> None:
    """Make the span that was open before the current one again."""
    # A generator may be closed from another context than the one that it began in.
    with suppress(ValueError):
        open_span.reset(token)
