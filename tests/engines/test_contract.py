"""The contract of every kind of engine: its life. `test_contract_answers` has that of its answers."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.base import Endpoint, Engine, LoadReport
from backends.openai import ChatRequest, SyncTransport
from budget.errors import EndpointUnavailable, EngineDied, InvalidRequest
from tests.engines.contract import KINDS, Case, Chats
from tests.engines.kinds import case_of
from tests.engines.support import running, until


@dataclass(frozen=True)
class Life:
    """What was seen of an engine from its start to its second stop."""

    progress: list[float]
    report: LoadReport
    was_healthy: bool
    memory: dict[str, int | None]
    died_of_stop: bool
    memory_after: dict[str, int | None]
    healthy_after: bool
    files_after: list[Path]


async def _live(case: Case, folder: Path) -> Life:
    engine, progress = case.make(folder), list[float]()
    try:
        report = await engine.start(case.placed, progress.append)
        was_healthy, memory = await engine.healthy(), dict(engine.memory())
        death = asyncio.ensure_future(engine.wait_death())
    finally:
        await engine.stop(grace_s=2.0)
    done, _ = await asyncio.wait({death}, timeout=0.05)
    death.cancel()
    await engine.stop(grace_s=0.0)
    after = dict(engine.memory()), await engine.healthy(), list(folder.iterdir())
    return Life(progress, report, was_healthy, memory, bool(done), *after)


@pytest.fixture(scope="module", params=KINDS)
def life(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Life]]:
    """The whole life of an engine of every kind, lived once for the tests of this file."""
    case = case_of(request)
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        yield case, asyncio.run(_live(case, Path(folder)))


def test_start_reports_progress_and_a_whole_load_report(life: tuple[Case, Life]) -> None:
    """The keeper learns how far a load is and what it cost; progress never goes back."""
    case, seen = life
    assert seen.was_healthy
    assert seen.progress[-1] == 1.0
    assert seen.progress == sorted(seen.progress)
    assert seen.report.started_ns <= seen.report.ready_ns
    assert seen.report.storage in {"cold", "staged"}
    assert (seen.report.file_bytes > 0) is case.local
    assert (sum(seen.report.buffers.values()) > 0) is case.local


def test_memory_is_measured_while_it_runs_and_gone_after(life: tuple[Case, Life]) -> None:
    """Bytes by device while the engine runs, none once it has stopped; a remote has none here."""
    case, seen = life
    assert ((seen.memory.get("host") or 0) > 0) is case.can("memory")
    assert seen.memory_after == {}


def test_stop_is_idempotent_and_leaves_no_socket(life: tuple[Case, Life]) -> None:
    """Two stops are one stop, and nothing of the engine stays in the runtime folder."""
    case, seen = life
    assert seen.healthy_after is not case.local
    assert seen.files_after == []


def test_an_asked_for_stop_is_no_death(life: tuple[Case, Life]) -> None:
    """`wait_death` tells crashes from stops."""
    assert not life[1].died_of_stop


def test_stop_of_an_engine_that_never_started_is_harmless(case: Case, runtime_dir: Path) -> None:
    """Unwinding may stop what was only made."""
    asyncio.run(case.make(runtime_dir).stop(grace_s=0.0))
    assert list(runtime_dir.iterdir()) == []


def test_a_cancelled_start_leaves_nothing(case: Case, runtime_dir: Path) -> None:
    """Neither at once nor in the middle of a load: no process, no bytes, no file."""

    async def cancelled(*, at_once: bool) -> None:
        engine = case.make(runtime_dir)
        starting = asyncio.ensure_future(engine.start(case.placed, lambda _fraction: None))

        async def under_way() -> bool:
            return at_once or starting.done() or bool(engine.memory())

        assert await until(under_way)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await engine.stop(grace_s=0.0)
        assert engine.memory() == {}
        assert list(runtime_dir.iterdir()) == []

    asyncio.run(cancelled(at_once=True))
    asyncio.run(cancelled(at_once=False))


def test_a_death_in_mid_stream_is_an_error_with_the_text_so_far(
    case: Case, runtime_dir: Path
) -> None:
    """No answer ends as if it were whole; the death is seen, and quotes the log of what died."""

    async def scenario() -> None:
        async with running(case.make(runtime_dir), case.placed) as engine:
            talk = case.talk()
            stream = await talk.stream(engine.endpoint, case.long)
            heard = talk.text(await anext(stream))

            async def rest() -> None:
                nonlocal heard
                async for piece in stream:
                    heard += talk.text(piece)

            case.crash(engine)
            with pytest.raises((EngineDied, EndpointUnavailable)) as caught:
                await rest()
            if isinstance(talk, Chats):
                assert caught.value.facts["text"] == heard
            await talk.aclose()
            if case.local:
                death = await asyncio.wait_for(engine.wait_death(), 60)
                assert death.error("m").facts["log_tail"] == list(engine.log_tail) != []
            else:
                assert engine.log_tail == ()
            assert await until(lambda: ended(engine))

    try:
        asyncio.run(scenario())
    finally:
        case.bury()


async def ended(engine: Engine) -> bool:
    """Whether an engine does not answer any more."""
    return not await engine.healthy()


def test_an_endpoint_crosses_the_keepers_socket_unchanged(case: Case, runtime_dir: Path) -> None:
    """What a lease answer carries is enough to reach the engine."""
    endpoint = case.make(runtime_dir).endpoint
    assert Endpoint.from_wire(endpoint.to_wire()) == endpoint


def test_an_unknown_option_is_refused_with_the_allowed_ones(case: Case, runtime_dir: Path) -> None:
    """A misspelt option is an error before anything is sent; a Python model takes no chats at all."""
    endpoint = case.make(runtime_dir).endpoint
    request = ChatRequest("hello", {"max_token": 3})
    with pytest.raises(InvalidRequest, match="max_tokens" if case.chats else endpoint.model_id):
        SyncTransport().chat(endpoint, request)
