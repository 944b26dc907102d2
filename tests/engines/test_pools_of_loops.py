"""Connections of event loops: they end with their loop, and can be closed from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Endpoint
from backends.machine.loop_end import at_loop_end
from backends.openai import AsyncTransport, ChatRequest
from backends.scripted import Script, ScriptedEngine
from tests.engines.support import placement

ASK = ChatRequest("hello")


@pytest.fixture
def endpoint(runtime_dir: Path) -> Iterator[Endpoint]:
    """A scripted engine that is served by a loop of its own, on another thread."""
    loop = asyncio.new_event_loop()
    engine = ScriptedEngine("m", runtime_dir)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        start = engine.start(placement(), lambda _fraction: None)
        asyncio.run_coroutine_threadsafe(start, loop).result(60)
        yield engine.endpoint
    finally:
        asyncio.run_coroutine_threadsafe(engine.stop(grace_s=1.0), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def _sockets_to(path: str) -> int:
    """This process's sockets that are connected to a path."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.is_socket():
                with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                    found += sock.family == socket.AF_UNIX and sock.getpeername() == path
    return found


def test_many_runs_leave_no_connection(endpoint: Endpoint) -> None:
    """`asyncio.run` again and again, with one transport: each run's connection ends with it."""
    transport = AsyncTransport()
    assert endpoint.socket_path is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(50):
            assert asyncio.run(transport.chat(endpoint, ASK)).content == "one two three"
            assert _sockets_to(endpoint.socket_path) == 0
        gc.collect()
    assert len(transport.pools.all()) == 0


def test_a_loop_that_is_closed_abruptly_is_dropped(endpoint: Endpoint) -> None:
    """Without `shutdown_asyncgens` nothing runs at the loop's end; the next loop lets its pool go."""
    transport = AsyncTransport()
    assert endpoint.socket_path is not None
    for _ in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(transport.chat(endpoint, ASK))
        loop.close()
        assert len(transport.pools.all()) == 1
    asyncio.run(transport.chat(endpoint, ASK))
    del loop
    gc.collect()
    assert len(transport.pools.all()) == 0
    assert _sockets_to(endpoint.socket_path) == 0


def test_an_unfinished_stream_ends_with_its_loop(endpoint: Endpoint) -> None:
    """A stream that its task left open does not outlive the run."""
    transport = AsyncTransport()
    assert endpoint.socket_path is not None

    async def leave() -> object:
        stream = await transport.stream(endpoint, ASK)
        await anext(stream)
        return stream

    kept = asyncio.run(leave())
    assert _sockets_to(endpoint.socket_path) == 0
    del kept


def test_the_loops_of_other_threads_are_closed_too(endpoint: Endpoint) -> None:
    """`close` from a thread without a loop: a loop that runs elsewhere closes its own connections."""
    transport = AsyncTransport()
    assert endpoint.socket_path is not None
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(transport.chat(endpoint, ASK), loop).result(60)
        assert _sockets_to(endpoint.socket_path) == 1
        transport.close()

        async def others_done() -> None:
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

        asyncio.run_coroutine_threadsafe(others_done(), loop).result(60)
        assert len(transport.pools.all()) == 0
        again = asyncio.run_coroutine_threadsafe(transport.chat(endpoint, ASK), loop).result(60)
        assert again.content == "one two three"
    finally:
        transport.close()
        asyncio.run_coroutine_threadsafe(others_done(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
    assert _sockets_to(endpoint.socket_path) == 0


def test_what_waits_for_a_loops_end_runs_once() -> None:
    """At the end of the loop, or before when it is asked to."""
    answer: list[str] = []

    async def main(*, early: bool) -> object:
        async def close() -> None:
            await asyncio.sleep(0)
            answer.append("early" if early else "late")

        held = at_loop_end(close)
        if early:
            await held.aclose()
            await held.aclose()
        assert answer == (["late", "early"] if early else [])
        return held

    kept = [asyncio.run(main(early=False)), asyncio.run(main(early=True))]
    assert answer == ["late", "early"]
    del kept


def test_an_answer_goes_on_when_its_transport_is_dropped(runtime_dir: Path) -> None:
    """The pools of a transport that is garbage are closed with the last of its answers, not before."""
    gate = asyncio.Event()

    async def run() -> str:
        engine = ScriptedEngine("m", runtime_dir, Script(token_gate=gate))
        await engine.start(placement(), lambda _fraction: None)
        try:
            stream = await AsyncTransport().stream(engine.endpoint, ASK)
            first = await anext(stream)
            gc.collect()
            for _ in range(20):
                await asyncio.sleep(0)
            gate.set()
            return str(first) + "".join([str(piece) async for piece in stream])
        finally:
            await engine.stop(grace_s=1.0)

    assert asyncio.run(run()) == "one two three"
