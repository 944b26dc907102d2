"""What the harness says on the trace of the run that is under way, if there is one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from traces import SpanHandle, current_run


def span(name: str, **facts: Any) -> AbstractContextManager[SpanHandle | None]:
    """A span around a piece of work; None without a run."""
    run = current_run()
    return nullcontext() if run is None else run.span(name, **facts)
