"""The engine of Python models by itself: its interpreter, its stalls, its children, its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.python import python_engine
from backends.python.links import LoopLink
from backends.python.python_engine import PythonEngine, WorkerSpec
from backends.python.worker_calls import WorkerCalls
from budget.errors import EngineTimeout, LoadFailed
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim.keeper.engines.stall_detection import StallDetector
from tests.engines.support import until
from tests.processes import alive, wait_until
from tests.workers.models import write_speech


def placed(slots: int = 1) -> Placement:
    """A small placement on the host."""
    return Placement(
        EngineArgs(n_ctx=0, slots=slots), {HOST: Footprint(weights_bytes=1 << 26)}, "declared"
    )


@asynccontextmanager
async def running(spec: WorkerSpec, runtime: Path, **options: Any) -> AsyncIterator[PythonEngine]:
    """An engine that has loaded; it ends with the block."""
    engine = PythonEngine(spec, "m", runtime, **options)
    try:
        await engine.start(placed(), lambda _fraction: None)
        yield engine
    finally:
        await engine.stop(grace_s=0.0)


def spec(name: str, folder: Path, **more: Any) -> WorkerSpec:
    """A model of the user's module."""
    return WorkerSpec(f"speech:{name}", cwd=write_speech(folder), **more)


def test_another_interpreter_needs_nothing_of_ours(tmp_path: Path, runtime_dir: Path) -> None:
    """An empty environment without numpy makes a model, and answers with JSON and bytes."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (tmp_path / "plain.py").write_text(
        "import sys\n"
        "class Model:\n"
        "    def __call__(self, data):\n"
        "        own = [m for m in sys.modules if m.partition('.')[0] in\n"
        "               ('backends', 'shim', 'budget', 'traces', 'numpy')]\n"
        "        return {'prefix': sys.prefix, 'ours': own, 'data': data, 'path': sys.path}\n"
    )

    async def ask() -> Any:
        made = WorkerSpec("plain:Model", cwd=tmp_path, python=str(python))
        async with running(made, runtime_dir) as engine:
            return await WorkerCalls(LoopLink).call(engine.endpoint, {"data": b"\0" * 100_000})

    found = asyncio.run(ask())
    assert found["prefix"] == str(tmp_path / "env")
    assert found["ours"] == []
    assert found["data"] == b"\0" * 100_000
    assert not [path for path in found["path"] if "backends" in path]


def test_a_worker_holds_the_gate_until_it_may_load(tmp_path: Path, runtime_dir: Path) -> None:
    """`prepare` starts the interpreter; the user's code runs once `start` says so."""

    async def ask() -> tuple[bool, tuple[str, ...]]:
        engine = PythonEngine(spec("Transcriber", tmp_path), "m", runtime_dir)
        try:
            await engine.prepare(placed())
            began = "made tiny" in engine.log_tail
            await engine.start(placed(), lambda _fraction: None)
            return began, engine.log_tail
        finally:
            await engine.stop(grace_s=0.0)

    began, tail = asyncio.run(ask())
    assert not began
    assert "made tiny" in tail


def test_a_prepared_worker_that_is_not_needed_ends(tmp_path: Path, runtime_dir: Path) -> None:
    """Without an order the interpreter ends, and leaves nothing."""

    async def ask() -> int | None:
        engine = PythonEngine(spec("Transcriber", tmp_path), "m", runtime_dir)
        await engine.prepare(placed())
        pid = engine.pid
        await engine.stop(grace_s=0.0)
        return pid

    pid = asyncio.run(ask())
    assert pid is not None
    assert not alive(pid)
    assert list(runtime_dir.iterdir()) == []


def test_a_load_that_does_nothing_is_given_up(tmp_path: Path, runtime_dir: Path) -> None:
    """It neither reads, grows, prints nor computes."""

    async def ask() -> None:
        async with running(spec("Hangs", tmp_path), runtime_dir, stall_s=0.5):
            pass

    with pytest.raises(EngineTimeout, match=r"loading m \(speech:Hangs\) made no progress"):
        asyncio.run(ask())
    assert list(runtime_dir.iterdir()) == []


def test_a_stopped_worker_and_a_working_one_are_told_apart(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """SIGSTOP is seen at once; a call that computes is no stall until it took ten times as long."""

    async def conditions() -> list[bool]:
        detector, now = StallDetector(), itertools.count()

        async def becomes(condition: str) -> bool:
            signs = await engine.signs(ask=True)
            assert signs is not None
            detector.look(signs, leases=1, asked=True, now=next(now) / 100)
            return detector.condition == condition

        found = []
        async with running(spec("Odd", tmp_path), runtime_dir) as engine:
            payload = {"do": "spins", "path": str(tmp_path / "gate")}
            call = asyncio.create_task(WorkerCalls(LoopLink).call(engine.endpoint, payload))
            found.append(await until(lambda: becomes("computing")))
            os.kill(engine.pid or 0, signal.SIGSTOP)
            found.append(await until(lambda: becomes("stopped")))
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
        return found

    assert asyncio.run(conditions()) == [True, True]


def test_children_of_a_worker_that_was_killed_end_with_its_burial(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """Also those in a session of their own, which are no members of its process group."""

    async def ask() -> int:
        async with running(spec("Odd", tmp_path), runtime_dir) as engine:
            child = await WorkerCalls(LoopLink).call(engine.endpoint, {"do": "leaves"})
            assert alive(child)
            engine.kill()
            death = await engine.wait_death()
            assert death.exit_code == -signal.SIGKILL
            return int(child)

    child = asyncio.run(ask())
    assert wait_until(lambda: not alive(child))
    assert list(runtime_dir.iterdir()) == []


def test_a_model_that_does_not_close_is_ended(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eviction waits for it a moment, and no longer."""
    monkeypatch.setattr(python_engine, "CLOSE_S", 0.2)
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "class Model:\n"
        "    def __call__(self): return 1\n"
        "    def close(self): print('closing', flush=True); time.sleep(600)\n"
    )

    async def ask() -> tuple[str, ...]:
        async with running(WorkerSpec("slow:Model", cwd=tmp_path), runtime_dir) as engine:
            await engine.stop(grace_s=0.0)
            return engine.log_tail

    assert "closing" in asyncio.run(ask())
    assert list(runtime_dir.iterdir()) == []


def test_a_file_that_is_not_there_is_named_before_the_code_runs(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """The user's code would say it in its own words, after its imports."""

    async def ask() -> None:
        made = spec("Transcriber", tmp_path, files=(tmp_path / "weights.bin",))
        async with running(made, runtime_dir):
            pass

    with pytest.raises(LoadFailed, match=r"weights\.bin cannot be read"):
        asyncio.run(ask())


def test_the_options_are_on_no_command_line(tmp_path: Path, runtime_dir: Path) -> None:
    """They may hold what other users of the machine should not read."""

    async def ask() -> str:
        made = spec("Transcriber", tmp_path, options={"name": "not-for-others"})
        async with running(made, runtime_dir) as engine:
            return Path(f"/proc/{engine.pid}/cmdline").read_bytes().decode()

    line = asyncio.run(ask())
    assert sys.executable in line
    assert "not-for-others" not in line
