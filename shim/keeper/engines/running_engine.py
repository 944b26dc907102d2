"""An engine that runs, as the shell holds it, and the history's records of its load and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.base import Engine, LoadReport
from backends.machine.shortages import refused
from budget import actions as act
from budget import events as ev
from budget.errors import InternalError, KeepwarmError, LoadFailed
from budget.footprint import Placement
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.engines.warm_prompt import Warmed, warm_up
from shim.keeper.shell.fault_counts import mark_noted, text_of
from shim.keeper.shell.history import EvictStory, LoadStory

EngineFactory = Callable[[CatalogEngine, Path], Engine]
Outcome = act.Grant | KeepwarmError
Done = Callable[[Outcome], None]
RevokeListener = Callable[[str, KeepwarmError], None]
YieldListener = Callable[[str, str], None]
Post = Callable[[ev.Event], None]
"""Gives an event to the core; raises what the core raises."""


@dataclass(slots=True)
class RunningEngine:
    """One run of an engine, from its load to its end: its process, its tasks, and its record."""

    engine: Engine
    entry: CatalogEngine
    generation: int
    load: LoadStory
    option_index: int = 0
    uses_before: int = 0
    preparing: asyncio.Task[None] | None = None
    starting: asyncio.Task[LoadReport] | None = None
    task: asyncio.Task[None] | None = None
    watch: asyncio.Task[None] | None = None
    report: LoadReport | None = None
    ready: bool = False
    leaving: bool = False
    """Its unload has begun, and owes the events that its load and its watch owed before."""
    ending: KeepwarmError | None = None
    """Why the keeper ends it by force; the error that its requests get."""
    endpoint: dict[str, Any] = field(default_factory=dict)
    """Where its requests go, as sent to clients; empty until it is ready."""

    @property
    def placement(self) -> Placement:
        """Its placement, with the bytes that are booked now."""
        return self.entry.placements[self.option_index]


def warm_up_of(running: RunningEngine) -> Callable[[], Awaitable[Warmed]] | None:
    """A function that evaluates the engine's warm prompt; None when it has none."""
    prompt = running.entry.warm_prompt
    return (lambda: warm_up(running.engine.endpoint, prompt)) if prompt else None


def load_record(entry: CatalogEngine, generation: int, option_index: int, reason: str) -> LoadStory:
    """The record of a load, which begins now."""
    placement = entry.placements[option_index]
    return LoadStory(
        load_id=f"{entry.engine_id}/{generation}",
        engine=entry.engine_id,
        model=entry.label,
        device=placement.main_device,
        bytes=placement.total_bytes,
        reason=reason,
        start_ns=time.monotonic_ns(),
        devices=dict(placement.bookings),
        placement=placement.reason,
    )


def eviction_record(running: RunningEngine, reason: str) -> EvictStory:
    """The record of an engine's end, which begins now."""
    return EvictStory(
        evict_id=f"{running.load.load_id}/end",
        engine=running.entry.engine_id,
        model=running.entry.label,
        device=running.load.device,
        bytes=running.load.bytes,
        reason=reason,
        start_ns=time.monotonic_ns(),
        devices=running.load.devices,
    )


def failure_of(running: RunningEngine, raised: BaseException, what: str) -> KeepwarmError:
    """The error that an engine's requests get for the failure that ended it.

    If the keeper ended the engine on purpose, this is the keeper's reason and not what was raised.
    """
    if running.ending is not None:
        mark_noted(raised)
        return running.ending
    if isinstance(raised, KeepwarmError):
        return raised
    if isinstance(raised, asyncio.CancelledError):
        return InternalError(f"{what} was cancelled, which the keeper did not ask for.")
    if (short := refused(raised, f"{what} failed")) is not None:
        return LoadFailed(short.message, hint=short.hint)
    return InternalError(f"{what} failed: {text_of(raised)}.")
