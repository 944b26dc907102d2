"""Putting a vLLM server to sleep and waking it, over its development routes on its own socket.

Level 1 moves the weights to the host's memory, level 2 drops them; both drop the KV cache. A request that
reaches a sleeping server hangs without a word, so that none may be sent before `wake` has returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from backends.machine.unix_http import control_request
from budget.errors import EndpointError

SLEEP_LIMIT_S: Final = 60.0
WAKE_LIMIT_S: Final = 600.0
"""For weights that are read from a disk anew."""
_TOLD_EVERY_S: Final = 1.0


async def fall_asleep(socket: Path, level: int) -> None:
    """Put a server to sleep; what it still works on is aborted.

    Raises:
        OSError, EndpointError: it does not.
    """
    await _post(socket, f"/sleep?level={level}", SLEEP_LIMIT_S)
    if not await _sleeps(socket):
        raise EndpointError("vLLM says that it is awake, after it was put to sleep.")


async def wake(socket: Path, level: int, on_progress: Callable[[float], None]) -> None:
    """Wake a server that sleeps on this level; `on_progress` hears that it goes on.

    Raises:
        OSError, EndpointError: it does not wake.
    """
    waking = asyncio.ensure_future(_wake(socket, level))
    try:
        while not waking.done():
            on_progress(0.5)
            await asyncio.wait({waking}, timeout=_TOLD_EVERY_S)
        waking.result()
    finally:
        waking.cancel()


async def _wake(socket: Path, level: int) -> None:
    if level == 1:
        await _post(socket, "/wake_up", WAKE_LIMIT_S)
    else:
        # The cache last: it would take the bytes that reading the weights needs for a moment.
        await _post(socket, "/wake_up?tags=weights", WAKE_LIMIT_S)
        await _post(socket, "/collective_rpc", WAKE_LIMIT_S, {"method": "reload_weights"})
        await _post(socket, "/wake_up?tags=kv_cache", WAKE_LIMIT_S)
    if await _sleeps(socket):
        raise EndpointError("vLLM says that it sleeps, after it was woken.")


async def _post(
    socket: Path, target: str, limit_s: float, body: dict[str, Any] | None = None
) -> None:
    status, _ = await control_request(socket, "POST", target, body, timeout_s=limit_s)
    if status != 200:
        raise EndpointError(f"vLLM answered {status} to {target}.", status=status)


async def _sleeps(socket: Path) -> bool:
    _, answer = await control_request(socket, "GET", "/is_sleeping")
    return isinstance(answer, dict) and answer.get("is_sleeping") is True
