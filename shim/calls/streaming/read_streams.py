"""Which streams the code that makes a call is reading: it cannot read on before it has an answer."""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextvars import ContextVar
from typing import Protocol

from shim.calls.streaming.unclosed_streams import running_loop


class OpenStream(Protocol):
    """A stream, as long as it holds a lease."""

    @property
    def lease(self) -> str | None:
        """Its lease; None when it holds none, or holds one no more."""
        ...

    @property
    def read_at(self) -> object:
        """Where its last piece was asked for, as `reading_place` names it."""
        ...


STREAMS_READ: ContextVar[tuple[weakref.ref[OpenStream], ...]] = ContextVar(
    "keepwarm_read", default=()
)
"""The streams that this context has read from."""


def reading_place() -> object:
    """The task that runs this code, or its thread."""
    loop = running_loop()
    task = asyncio.current_task(loop) if loop is not None else None
    return threading.get_ident() if task is None else weakref.ref(task)


def remember(stream: OpenStream) -> None:
    """Note that this context reads a stream. Nothing has to be undone when it ends."""
    STREAMS_READ.set((*(ref for ref in STREAMS_READ.get() if _is_open(ref)), weakref.ref(stream)))


def leases_here() -> list[str]:
    """The leases of the open streams that were last read by this very task, or in this thread.

    A stream that is read elsewhere by now, or that another context began to read here (a job in a pool of
    threads), does not count: its lease may end while the call waits.
    """
    refs = STREAMS_READ.get()
    if not refs:
        return []
    still = tuple(ref for ref in refs if _is_open(ref))
    if len(still) < len(refs):
        STREAMS_READ.set(still)
    place = reading_place()
    found = [stream for ref in still if (stream := ref()) is not None and stream.read_at == place]
    return [stream.lease for stream in found if stream.lease is not None]


def _is_open(ref: weakref.ref[OpenStream]) -> bool:
    stream = ref()
    return stream is not None and stream.lease is not None
