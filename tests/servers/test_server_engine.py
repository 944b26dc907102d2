"""The engine of servers by itself: its readiness, its stalls, its files, its signs of life."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.engine_process import orphans
from backends.engine_process.orphans import sweep_leftovers
from backends.machine.processes import listening_ports
from backends.machine.unix_http import free_port
from backends.server.command import ServerSpec
from backends.server.server_engine import ServerEngine
from budget.errors import EngineTimeout, LoadFailed
from shim.keeper.engines.stall_detection import StallDetector
from tests.engines.support import until
from tests.servers.support import command, placed, write_server

STALL_S = 2.0
"""Long enough for a program to start on a busy machine, on which it may get no time for a while."""


def spec(folder: Path, *flags: str, **more: Any) -> ServerSpec:
    """The server with some flags."""
    keys: dict[str, Any] = {"ready": "/health", **more}
    return ServerSpec(tuple(command(*flags)), "s", cwd=write_server(folder), **keys)


@asynccontextmanager
async def running(made: ServerSpec, runtime: Path, **options: Any) -> AsyncIterator[ServerEngine]:
    """An engine that is ready; it ends with the block."""
    engine = ServerEngine(made, "s", runtime, **options)
    try:
        await engine.start(placed(), lambda _fraction: None)
        yield engine
    finally:
        await engine.stop(grace_s=0.0)


def started(made: ServerSpec, runtime: Path, **options: Any) -> None:
    """Start an engine, and end it."""

    async def scenario() -> None:
        async with running(made, runtime, **options):
            pass

    asyncio.run(scenario())


def test_a_server_that_never_listens_is_given_up_with_what_was_seen(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """It neither reads, grows, logs nor computes for the stall time-out."""
    with pytest.raises(EngineTimeout, match=r"no progress.*does not listen on the port") as caught:
        started(spec(tmp_path, "sleeps"), runtime_dir, stall_s=STALL_S)
    assert caught.value.facts["log_tail"] == ["begins with key"]
    assert list(runtime_dir.iterdir()) == []


def test_a_server_that_listens_and_is_never_ready_is_given_up(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """Its `ready` path says 503 until then."""
    (tmp_path / "not-ready").touch()
    with pytest.raises(EngineTimeout, match=r"it listens, and /health does not answer 2xx"):
        started(spec(tmp_path), runtime_dir, stall_s=STALL_S)


def test_a_server_whose_path_answers_an_error_is_given_up_after_one_stall_timeout(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """With the status and the body, without its key; lines that it logs for the question do not count."""
    made = spec(tmp_path, "refuses", env={"SERVER_KEY": "{key}"})
    with pytest.raises(
        LoadFailed, match="for 1 s its server has answered /health with 500"
    ) as caught:
        started(made, runtime_dir, stall_s=1.0)
    assert caught.value.facts["status"] == 500
    assert caught.value.facts["body"] == '{"error": "no weights, and the key is ***"}'
    assert "no weights" in caught.value.message


def test_without_a_path_it_is_ready_when_it_listens(tmp_path: Path, runtime_dir: Path) -> None:
    """For servers that say nothing of their health."""
    (tmp_path / "not-ready").touch()
    started(spec(tmp_path, ready=None), runtime_dir)


def test_another_programs_port_is_not_taken_for_the_servers(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """A program that was faster answers there; no prompt and no key goes to it."""

    async def scenario() -> None:
        made = spec(tmp_path, "sleeps", ready=None)
        engine = ServerEngine(made, "s", runtime_dir, stall_s=0.5)
        try:
            await engine.prepare(placed())
            with socket.create_server(("127.0.0.1", engine._port)):
                await engine.start(placed(), lambda _fraction: None)
        finally:
            await engine.stop(grace_s=0.0)

    with pytest.raises(EngineTimeout, match="does not listen on the port that it was given"):
        asyncio.run(scenario())


def test_what_is_forked_while_others_are_ended_is_ended_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One look at all processes misses those that begin meanwhile."""
    mark = "KEEPWARM_TEST_MARK=forks"
    name, _, value = mark.partition("=")
    sleepers = [subprocess.Popen(["sleep", "600"], env={name: value}) for _ in range(2)]
    looks = iter([[sleepers[0].pid], []])
    monkeypatch.setattr(orphans, "all_pids", lambda: next(looks, [each.pid for each in sleepers]))
    try:
        orphans.end_marked(mark)
        assert [each.wait(5) for each in sleepers] == [-signal.SIGKILL] * 2
    finally:
        for each in sleepers:
            each.kill()


def test_its_key_is_in_a_private_file_that_ends_with_it(tmp_path: Path, runtime_dir: Path) -> None:
    """A sweep of what a dead keeper left removes it as well."""

    async def scenario() -> tuple[int, str]:
        async with running(spec(tmp_path), runtime_dir) as engine:
            file = Path(engine.endpoint.key_file or "")
            return file.stat().st_mode & 0o777, file.read_text()

    mode, key = asyncio.run(scenario())
    assert mode == 0o600
    assert key.startswith("sk-")
    assert list(runtime_dir.iterdir()) == []
    left = runtime_dir / "e-0123456789ab.key"
    left.write_text(key)
    sweep_leftovers(runtime_dir)
    assert not left.exists()


def test_a_server_that_waits_for_its_client_is_well_and_a_stopped_one_is_not(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """A lease may be held without a request; SIGSTOP is seen at once, a port that is gone as well."""

    async def conditions() -> list[str]:
        detector, now = StallDetector(), itertools.count()
        found = []

        async def look() -> str:
            signs = await engine.signs(ask=True)
            assert signs is not None
            detector.look(signs, leases=1, asked=True, now=float(next(now)))
            return detector.condition

        async def is_stopped() -> bool:
            return await look() == "stopped"

        async with running(spec(tmp_path), runtime_dir) as engine:
            found += [await look(), await look()]
            os.kill(engine.pid or 0, signal.SIGSTOP)
            assert await until(is_stopped)
            os.kill(engine.pid or 0, signal.SIGCONT)
            engine._port = free_port()
            found.append(await look())
        return found

    assert asyncio.run(conditions()) == ["fine", "fine", "unreachable"]


def test_ports_that_a_process_listens_on_are_found() -> None:
    """Its own, and no other process's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in listening_ports([os.getpid()])
        assert port not in listening_ports([os.getppid()])
    assert port not in listening_ports([os.getpid()])
