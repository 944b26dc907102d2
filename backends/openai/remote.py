"""A remote endpoint as an engine: nothing is started, nothing is booked, requests go straight there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from backends.base import Capabilities, Death, Endpoint, LoadReport
from backends.openai.answers.foreign_errors import refused
from backends.openai.async_client import AsyncTransport
from budget.errors import EngineTimeout, InvalidRequest, KeepwarmError
from budget.footprint import Placement

HEALTH_S: Final = 5.0
_HEALTH: Final = {"openai": "/v1/models", "ollama": "/api/tags"}
_OK: Final = 200


class RemoteEngine:
    """An OpenAI-compatible endpoint that keepwarm does not run.

    Args:
        endpoint: its address.
        check: whether `start` asks for its health; otherwise the first request finds out.
        health_path: the path of that question; `/health` for vLLM and llama-server, `/v1/models` elsewhere.
    """

    def __init__(
        self, endpoint: Endpoint, *, check: bool = False, health_path: str | None = None
    ) -> None:
        self._endpoint = endpoint
        self._check = check
        default = _HEALTH.get(endpoint.backend, "/health")
        self._health_path = health_path or default

    def __repr__(self) -> str:
        return f"<RemoteEngine {self._endpoint.model_id} ({self._endpoint.backend})>"

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._endpoint

    @property
    def capabilities(self) -> Capabilities:
        """The features that the configuration gives the endpoint."""
        return self._endpoint.capabilities

    @property
    def log_tail(self) -> tuple[str, ...]:
        """Its log is elsewhere."""
        return ()

    def log_since(self, seen: int) -> tuple[int, tuple[str, ...]]:  # noqa: ARG002
        """Its log is elsewhere."""
        return 0, ()

    async def prepare(self, placement: Placement) -> None:
        """Nothing to do ahead."""

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Nothing is loaded; with `check`, ask whether the endpoint answers.

        Raises:
            EndpointUnavailable: it does not.
            ConfigError: its API key is not set.
        """
        del placement
        started_ns = time.monotonic_ns()
        if self._check:
            await self._ask()
        on_progress(1.0)
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage="staged",
            file_bytes=0,
            read_bytes=0,
            buffers={},
        )

    async def wait_death(self) -> Death:
        """Never returns: a remote endpoint is not ours to watch. Cancel it."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def stop(self, *, grace_s: float) -> None:
        """Nothing to end."""
        del grace_s

    async def sleep(self) -> None:
        """It is not ours to put to sleep."""

    def kill(self) -> None:
        """Nothing to end."""

    async def healthy(self) -> bool:
        """Whether the endpoint answers its health path now; false too when its key is not set."""
        try:
            await self._ask()
        except KeepwarmError:
            return False
        return True

    async def signs(self, *, ask: bool) -> None:
        """None, because a remote endpoint is not watched."""

    def overgrown(self, measured: Mapping[str, int | None]) -> None:
        """It takes nothing on this machine."""

    def ceilings(self) -> Mapping[str, int]:
        """Empty, as `memory`."""
        return {}

    def memory(self) -> Mapping[str, int | None]:
        """Empty, because it takes no bytes on this machine."""
        return {}

    def cached_bytes(self) -> int:
        """None here."""
        return 0

    def keep_kv_in(self, folder: Path) -> None:
        """No effect, because no state is saved."""

    async def kv_tokens(self) -> Mapping[int, int]:
        """Empty, because the slots are not known here."""
        return {}

    async def save_kv(self, slot: int, name: str) -> int:
        """Not to be had.

        Raises:
            InvalidRequest: always.
        """
        raise self._no_kv(slot, name)

    async def restore_kv(self, slot: int, name: str) -> int:
        """Not to be had.

        Raises:
            InvalidRequest: always.
        """
        raise self._no_kv(slot, name)

    def _no_kv(self, slot: int, name: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._endpoint.model_id} is remote; its KV state cannot be saved or restored.",
            slot=slot,
            name=name,
        )

    async def _ask(self) -> None:
        transport = AsyncTransport()
        try:
            status = await transport.probe(self._endpoint, self._health_path, within_s=HEALTH_S)
        except EngineTimeout as slow:
            raise refused(self._endpoint, slow.message.rstrip(".")) from slow
        finally:
            await transport.aclose()
        if status != _OK:
            raise refused(self._endpoint, f"{self._health_path} answered {status}")
