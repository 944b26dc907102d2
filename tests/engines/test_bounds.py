"""Every wait on an engine ends: with its answer, or with an error of ours that says what was waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from backends.engine_process import process as process_module
from backends.engine_process.load_progress import LoadProgress
from backends.engine_process.log import LogRing
from backends.engine_process.process import EngineProcess, engine_socket
from backends.llama.slots import Slots, slot_signs
from backends.machine import bounded_questions as threads
from backends.machine.bounded_questions import asked
from backends.machine.files.folders import private_folder
from backends.machine.processes import IoCounts, is_stopped, process_state
from backends.machine.unix_http import blocking_request, control_request, is_healthy
from budget.errors import (
    ConfigError,
    EndpointError,
    EngineDied,
    EngineTimeout,
    KeepwarmError,
    LoadFailed,
)
from tests.engines.support import until

Asking = Callable[[Slots], Awaitable[object]]


@contextlib.asynccontextmanager
async def answering(socket: Path, answer: bytes | None) -> AsyncIterator[None]:
    """An engine that gives this answer to everything; None: it accepts and says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            with contextlib.suppress(OSError):
                writer.write(answer)
                await writer.drain()
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, path=str(socket))
    try:
        yield
    finally:
        server.close()


def asked_of(folder: Path, answer: bytes | None, asking: Asking) -> KeepwarmError:
    """The error of a question to an engine that answers like this."""

    async def scenario() -> KeepwarmError:
        socket = folder / "e.sock"
        async with answering(socket, answer):
            with pytest.raises(KeepwarmError) as caught:
                await asking(Slots(socket, "m", 0.05, carries_kv=True))
        return caught.value

    return asyncio.run(scenario())


@pytest.mark.parametrize("action", [lambda s: s.rows(0.05), lambda s: s.save(0, "x")])
def test_an_engine_that_says_nothing_is_a_timeout(runtime_dir: Path, action: Asking) -> None:
    """It accepts the connection, as a stopped process's socket does."""
    error = asked_of(runtime_dir, None, action)
    assert isinstance(error, EngineTimeout)
    assert "within 0.05 s" in error.message


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"not JSON",
        OK + b"[" * 2000,
        OK + b'{"error": 1}',
        OK + b"[1, 2]",
        OK + b'[{"id": NaN}]',
        OK,
        b"HTTP/1.1 501 No\r\n\r\n{}",
    ],
)
def test_an_answer_that_is_none_is_an_error_of_ours(runtime_dir: Path, answer: bytes) -> None:
    """Neither a `KeyError` nor a `RecursionError` comes out of what an engine says."""
    assert isinstance(asked_of(runtime_dir, answer, lambda s: s.tokens()), EndpointError)
    assert isinstance(asked_of(runtime_dir, answer, lambda s: s.save(0, "x")), EndpointError)


def test_an_endless_answer_is_cut_off(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the keeper takes of one answer is bounded."""
    monkeypatch.setattr("backends.machine.unix_http._MAX_ANSWER_BYTES", 1000)

    async def scenario() -> None:
        async with answering(runtime_dir / "e.sock", OK + b" " * 2000):
            with pytest.raises(EndpointError, match="over 1000 bytes"):
                await control_request(runtime_dir / "e.sock", "GET", "/slots")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (OK + b'{"status": "ok"}', True),
        (b'HTTP/1.1 503 No\r\n\r\n{"error": "loading"}', False),
        (OK + b"not JSON", False),
        (b"SSH-2.0", False),
        (b"", False),
    ],
)
def test_a_program_without_a_loop_asks_as_the_keeper_does(
    runtime_dir: Path, answer: bytes, healthy: bool
) -> None:
    """The same answers and the same errors; a server is healthy only when it says so."""

    async def scenario() -> None:
        path = runtime_dir / "e.sock"
        async with answering(path, answer):
            assert await asyncio.to_thread(is_healthy, path) is healthy
            try:
                heard = await control_request(path, "GET", "/health")
            except (OSError, EndpointError) as error:
                with pytest.raises(type(error)):
                    await asyncio.to_thread(blocking_request, path, "GET", "/health")
            else:
                assert await asyncio.to_thread(blocking_request, path, "GET", "/health") == heard

    asyncio.run(scenario())
    assert not is_healthy(runtime_dir / "none.sock")


def test_an_engine_without_a_socket_is_dead(runtime_dir: Path) -> None:
    """Nothing listens there."""

    async def scenario() -> None:
        with pytest.raises(EngineDied):
            await Slots(runtime_dir / "none.sock", "m", 1.0, carries_kv=True).rows()

    asyncio.run(scenario())


def test_a_process_that_does_not_end_is_said_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver can hold a killed process for ever: its end is waited for within a bound."""

    async def scenario() -> None:
        process = EngineProcess.spawn(["sleep", "60"], dict(os.environ))
        with monkeypatch.context() as m:
            m.setattr(process_module, "KILL_LIMIT_S", 0.01)
            m.setattr(process, "_signal", lambda _number: None)
            with pytest.raises(EngineTimeout, match=str(process.pid)):
                await process.stop(grace_s=0.01)
        assert await process.stop(grace_s=0.0) == -signal.SIGKILL

    asyncio.run(scenario())


def test_a_driver_that_does_not_answer_fails_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question stays in its thread; the load ends with what was asked."""
    monkeypatch.setattr(threads, "ANSWER_LIMIT_S", 0.01)
    answers = threading.Event()

    def gpu_environment() -> None:
        answers.wait()

    async def scenario() -> None:
        with pytest.raises(LoadFailed, match="gpu_environment"):
            await asked(gpu_environment)
        answers.set()

    asyncio.run(scenario())


def test_a_folder_too_long_for_sockets_is_named_with_the_variable() -> None:
    """Before an engine starts: the kernel's 107 bytes, and how long the folder may be."""
    with pytest.raises(ConfigError) as caught:
        engine_socket(Path("/" + "x" * 100))
    error = caught.value
    assert error.facts["folder"] == "/" + "x" * 100
    assert "KEEPWARM_RUNTIME_DIR" in error.hint
    assert "at most 87 bytes" in error.hint
    assert engine_socket(Path("/" + "x" * 86))


def test_a_folder_that_cannot_be_made_is_named_with_the_variable(tmp_path: Path) -> None:
    """A file stands in its way, or the disk is read-only."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made") as caught:
        private_folder(tmp_path / "file" / "folder")
    assert "KEEPWARM_RUNTIME_DIR" in caught.value.hint


def test_questions_do_not_push_the_last_lines_out() -> None:
    """Each question for the slots makes a line in the engine's log."""
    ring = LogRing()
    ring.add(b"0.01 E the last thing that matters")
    for second in range(1000):
        ring.add(b"%d I srv  update_slots: all slots are idle" % second)
    assert ring.lines[0].endswith("matters")
    assert len(ring.lines) == 2
    assert ring.lines_seen == 1001


def test_slots_that_work_and_slots_that_have_got_on() -> None:
    """A prompt moves batch by batch, an answer token by token; an idle engine is not busy."""
    idle = {"id": 0, "is_processing": False}
    prompt = {"is_processing": True, "id_task": 7, "n_prompt_tokens": 2048}
    first = slot_signs([{**prompt, "next_token": [{"n_decoded": 0}]}, idle])
    later = slot_signs(
        [{**prompt, "n_prompt_tokens": 4096, "next_token": [{"n_decoded": 0}]}, idle]
    )
    answer = slot_signs([{**prompt, "next_token": [{"n_decoded": 1}]}, idle])
    assert (first.busy, first.prompting) == (1, True)
    assert (answer.busy, answer.prompting) == (1, False)
    assert len({first.moved, later.moved, answer.moved}) == 3
    assert not slot_signs([idle]).busy
    assert not slot_signs([{**prompt, "is_unread": True}]).busy
    assert slot_signs([{"is_processing": True, "next_token": "?", "id_task": None}]).prompting


def test_a_stopped_process_is_seen() -> None:
    """By the state that the kernel tells."""

    async def scenario() -> None:
        process = EngineProcess.spawn(["sleep", "60"], dict(os.environ))
        try:
            assert not is_stopped(process.pid)
            os.kill(process.pid, signal.SIGSTOP)

            async def stopped() -> bool:
                return is_stopped(process.pid)

            assert await until(stopped)
        finally:
            await process.stop(grace_s=0.0)
        assert process_state(process.pid) is None

    asyncio.run(scenario())


def test_a_load_moves_while_it_reads_fills_or_tells() -> None:
    """Memory beyond what it is to hold is none of its progress, nor is memory that comes and goes."""
    progress = LoadProgress(100, 50, 0.0)
    steps = [
        (IoCounts(rchar=10, rss_bytes=20), 0, True),
        (IoCounts(rchar=10, rss_bytes=20), 0, False),
        (IoCounts(rchar=10, rss_bytes=21), 0, True),
        (IoCounts(rchar=10, rss_bytes=15), 0, False),
        (IoCounts(rchar=10, rss_bytes=21), 0, False),
        (IoCounts(rchar=10, rss_bytes=15), 1, True),
        (IoCounts(rchar=11, rss_bytes=15), 1, True),
        (IoCounts(rchar=11, rss_bytes=149), 1, True),
        (IoCounts(rchar=11, rss_bytes=151), 1, True),
        (IoCounts(rchar=11, rss_bytes=900), 1, False),
    ]
    for now, (counts, lines, moves) in enumerate(steps, 1):
        progress.look(counts, lines, float(now))
        assert (progress.stalled_for_s(float(now)) == 0.0) is moves, counts
    assert progress.fraction == 0.99
