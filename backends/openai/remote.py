"""A remote endpoint as an engine: nothing is started, nothing is booked, requests go straight there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from backends.base import Capabilities, Death, Endpoint, LoadReport
from backends.openai.answers import refused
from backends.openai.exchange import api_key, transport_settings
from budget.errors import InvalidRequest, KeepwarmError
from budget.footprint import Placement

_HEALTH_S = 5.0


class RemoteEngine:
    """An OpenAI-compatible endpoint that somebody else runs.

    Args:
        endpoint: where it is.
        check: ask for its health in `start`; without it the first request finds out.
        health_path: what is asked; `/health` for vLLM and llama-server, `/v1/models` elsewhere.
    """

    def __init__(
        self, endpoint: Endpoint, *, check: bool = False, health_path: str | None = None
    ) -> None:
        self._endpoint = endpoint
        self._check = check
        default = "/v1/models" if endpoint.backend == "openai" else "/health"
        self._health_path = health_path or default

    def __repr__(self) -> str:
        return f"<RemoteEngine {self._endpoint.model_id} ({self._endpoint.backend})>"

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._endpoint

    @property
    def capabilities(self) -> Capabilities:
        """What the endpoint was configured to honour."""
        return self._endpoint.capabilities

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
            reason = await self._problem()
            if reason is not None:
                raise refused(self._endpoint, reason)
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

    def kill(self) -> None:
        """Nothing to end."""

    async def healthy(self) -> bool:
        """Whether the endpoint answers its health path now; false too when its key is not set."""
        try:
            return await self._problem() is None
        except KeepwarmError:
            return False

    def memory(self) -> Mapping[str, int | None]:
        """Nothing on this machine."""
        return {}

    def cached_bytes(self) -> int:
        """None here."""
        return 0

    def keep_kv_in(self, folder: Path) -> None:
        """Nothing is saved anywhere."""

    async def kv_tokens(self) -> Mapping[int, int]:
        """Nothing that is known here."""
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

    async def _problem(self) -> str | None:
        key = api_key(self._endpoint)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.AsyncHTTPTransport(**transport_settings(self._endpoint))
        url = self._endpoint.base_url.rstrip("/") + self._health_path
        try:
            async with httpx.AsyncClient(
                transport=transport, timeout=_HEALTH_S, trust_env=False
            ) as client:
                answer = await client.get(url, headers=headers)
        except httpx.HTTPError as exc:
            return str(exc) or type(exc).__name__
        if answer.status_code != 200:
            return f"{self._health_path} answered {answer.status_code}"
        return None
