"""A command's run on a trace, where `[trace] enabled` asks for one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from shim.calls.own_run import configured_run
from shim.config import Config
from traces import RunTrace


def traced(config: Config, command: str) -> AbstractContextManager[RunTrace | None]:
    """What to enter around a command: a run's trace when the configuration asks for it."""
    section = config.trace
    if not section.enabled:
        return nullcontext()
    return configured_run(section, f"keepwarm {command}")
