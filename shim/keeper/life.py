"""One life of an engine as the shell holds it, and what is said of its begin and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.base import Engine, LoadReport
from budget import actions as act
from budget.errors import KeepwarmError
from shim.keeper.catalog import CatalogEngine
from shim.keeper.history import EvictStory, LoadStory
from shim.keeper.warming import Warmed, warm_up

EngineFactory = Callable[[CatalogEngine, Path], Engine]
Outcome = act.Grant | KeepwarmError
Done = Callable[[Outcome], None]
RevokeListener = Callable[[str, KeepwarmError], None]
YieldListener = Callable[[str, str], None]


@dataclass(slots=True)
class Life:
    """One life of an engine: its process, the tasks around it, and its story."""

    engine: Engine
    entry: CatalogEngine
    generation: int
    load: LoadStory
    option_index: int = 0
    uses_before: int = 0
    preparing: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None
    watch: asyncio.Task[None] | None = None
    report: LoadReport | None = None
    ready: bool = False
    ending: KeepwarmError | None = None
    """Why the keeper ends it by force; what those who use it are told."""
    endpoint: dict[str, Any] = field(default_factory=dict)
    """Where its requests go, as clients are told; known once it is ready."""


def warm_up_of(life: Life) -> Callable[[], Awaitable[Warmed]] | None:
    """What evaluates the warm prompt of an engine that has one."""
    prompt = life.entry.warm_prompt
    return (lambda: warm_up(life.engine.endpoint, prompt)) if prompt else None


def evict_story(life: Life, reason: str) -> EvictStory:
    """The story of a life's end, which begins now."""
    return EvictStory(
        evict_id=f"{life.load.load_id}/end",
        engine=life.entry.engine_id,
        model=life.entry.label,
        device=life.load.device,
        bytes=life.load.bytes,
        reason=reason,
        start_ns=time.monotonic_ns(),
        devices=life.load.devices,
    )
