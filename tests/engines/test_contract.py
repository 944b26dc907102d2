"""The contract of every kind of engine: its life. `test_contract_answers` has that of its answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.base import Endpoint
from backends.openai import AsyncTransport, ChatRequest, SyncTransport, assemble
from budget.errors import InvalidRequest
from tests.engines.conftest import Case
from tests.engines.support import HELLO, running


def test_start_reports_progress_and_a_whole_load_report(case: Case, runtime_dir: Path) -> None:
    """The keeper learns how far a load is and what it cost; progress never goes back."""
    seen: list[float] = []

    async def scenario() -> None:
        engine = case.make(runtime_dir)
        try:
            report = await engine.start(case.placed, seen.append)
            assert await engine.healthy()
        finally:
            await engine.stop(grace_s=2.0)
        assert report.started_ns <= report.ready_ns
        assert report.storage in {"cold", "staged"}
        assert (report.file_bytes > 0) is case.local
        assert (sum(report.buffers.values()) > 0) is case.local

    asyncio.run(scenario())
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_full_and_streamed_answers_are_the_same_text(case: Case, runtime_dir: Path) -> None:
    """Streaming is another way to receive, not another answer (temperature 0, same seed)."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir)) as engine:
            client = AsyncTransport()
            full = await client.chat(engine.endpoint, HELLO)
            stream = await client.stream(engine.endpoint, HELLO)
            pieces = [delta async for delta in stream]
            streamed = assemble(pieces)
            await client.aclose()
        assert full.content == streamed.content != ""
        assert full.finish_reason == streamed.finish_reason
        assert full.usage.completion_tokens == streamed.usage.completion_tokens > 0
        assert (full.timings is not None) is (streamed.timings is not None) is case.timings
        if full.timings is not None and streamed.timings is not None:
            assert streamed.timings.predicted_n == full.timings.predicted_n
        assert sum(1 for piece in pieces if piece.content) > 1

    asyncio.run(scenario())


def test_threads_and_event_loops_get_the_same_answer(case: Case, runtime_dir: Path) -> None:
    """The blocking client and the asynchronous one are two ways to one engine."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir)) as engine:
            client, threads = AsyncTransport(), SyncTransport()
            awaited = await client.chat(engine.endpoint, HELLO)
            blocking = await asyncio.to_thread(threads.chat, engine.endpoint, HELLO)
            streamed = await asyncio.to_thread(
                lambda: assemble(threads.stream(engine.endpoint, HELLO))
            )
            threads.close()
            await client.aclose()
        assert awaited.content == blocking.content == streamed.content

    asyncio.run(scenario())


def test_max_tokens_ends_an_answer_with_finish_reason_length(case: Case, runtime_dir: Path) -> None:
    """A caller can tell an answer that was cut from one that ended."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir)) as engine:
            client = AsyncTransport()
            answer = await client.chat(engine.endpoint, ChatRequest("hello", {"max_tokens": 2}))
            await client.aclose()
        assert answer.finish_reason == "length"
        assert answer.usage.completion_tokens == 2

    asyncio.run(scenario())


def test_saved_kv_state_is_offered_exactly_as_declared(case: Case, runtime_dir: Path) -> None:
    """A capability is true or the call is refused with a typed error; nothing is silent."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir)) as engine:
            client = AsyncTransport()
            await client.chat(engine.endpoint, HELLO)
            await client.aclose()
            if engine.capabilities.save_restore:
                assert await engine.save_kv(0, "talk") > 0
                assert await engine.restore_kv(0, "talk") > 0
            else:
                with pytest.raises(InvalidRequest):
                    await engine.save_kv(0, "talk")

    asyncio.run(scenario())


def test_memory_is_measured_while_it_runs_and_gone_after(case: Case, runtime_dir: Path) -> None:
    """Bytes by device while the engine runs, none once it has stopped; a remote has none here."""

    async def scenario() -> None:
        engine = case.make(runtime_dir)
        async with running(engine):
            assert ((engine.memory().get("host") or 0) > 0) is case.local
        assert engine.memory() == {}

    asyncio.run(scenario())


def test_stop_is_idempotent_and_leaves_no_socket(case: Case, runtime_dir: Path) -> None:
    """Two stops are one stop, and nothing of the engine stays in the runtime folder."""

    async def scenario() -> None:
        engine = case.make(runtime_dir)
        async with running(engine):
            pass
        await engine.stop(grace_s=0.0)
        assert await engine.healthy() is not case.local

    asyncio.run(scenario())
    assert list(runtime_dir.iterdir()) == []


def test_stop_of_an_engine_that_never_started_is_harmless(case: Case, runtime_dir: Path) -> None:
    """Unwinding may stop what was only made."""
    asyncio.run(case.make(runtime_dir).stop(grace_s=0.0))
    assert list(runtime_dir.iterdir()) == []


def test_an_asked_for_stop_is_no_death(case: Case, runtime_dir: Path) -> None:
    """`wait_death` tells crashes from stops."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir)) as engine:
            death = asyncio.ensure_future(engine.wait_death())
            await engine.stop(grace_s=2.0)
            done, _ = await asyncio.wait({death}, timeout=0.05)
            assert done == set()
            death.cancel()

    asyncio.run(scenario())


def test_an_endpoint_crosses_the_keepers_socket_unchanged(case: Case, runtime_dir: Path) -> None:
    """What a lease answer carries is enough to reach the engine."""
    endpoint = case.make(runtime_dir).endpoint
    assert Endpoint.from_wire(endpoint.to_wire()) == endpoint


def test_an_unknown_option_is_refused_with_the_allowed_ones(case: Case, runtime_dir: Path) -> None:
    """A misspelt option is an error before anything is sent."""
    endpoint = case.make(runtime_dir).endpoint
    request = ChatRequest("hello", {"max_token": 3})
    with pytest.raises(InvalidRequest, match="max_tokens"):
        SyncTransport().chat(endpoint, request)
