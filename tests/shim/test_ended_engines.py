"""An engine that ends takes no request with it that is not suspected: those are sent once more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.openai import sync_client
from backends.scripted import Script
from budget.errors import EngineTimeout, KeepwarmError
from shim import EngineDied, Shim
from shim.keeper.engines.deaths import Deaths
from tests.processes import wait_until
from tests.shim.conftest import Stage
from tests.shim.fake_keeper import FakeKeeper, Message, engine_on_a_thread, grant
from traces import RunLine, RunTrace, read_runs

CONFIG: dict[str, Any] = {"models": {"m": {"path": "/models/m.gguf"}}}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers that wait."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def _stream(shim: Shim, model: str) -> Any:
    with shim.stream(model, "Hello.") as stream:
        list(stream)
    return stream.reply


async def _astream(shim: Shim, model: str) -> Any:
    async with await shim.astream(model, "Hello.") as stream:
        async for _ in stream:
            pass
    return stream.reply


ASKS: dict[str, Callable[[Shim, str], Any]] = {
    "chat": lambda shim, model: shim.chat(model, "Hello."),
    "background": lambda shim, model: shim.chat(model, "Hello.", priority=-1),
    "stream": _stream,
    "embed": lambda shim, model: shim.embed(model, ["Hello."]),
    "achat": lambda shim, model: asyncio.run(shim.achat(model, "Hello.")),
    "astream": lambda shim, model: asyncio.run(_astream(shim, model)),
    "aembed": lambda shim, model: asyncio.run(shim.aembed(model, ["Hello."])),
}


def ended_under(
    stage: Stage, pool: ThreadPoolExecutor, ask: Callable[[Shim, str], Any], then: Script
) -> tuple[Future[Any], Future[Any]]:
    """A request and one that began later, whose engine ends; the next engine follows `then`."""
    stage.scripts["a"] = Script(tokens=["", *Script.tokens], token_gate=asyncio.Event())
    stage.shim.load("a")
    (engine,) = stage.engines
    first = pool.submit(ask, stage.shim, "a")
    assert wait_until(lambda: len(engine.requests) == 1)
    last = pool.submit(stage.shim.chat, "a", "I end engines.")
    assert wait_until(lambda: len(engine.requests) == 2)
    stage.scripts["a"] = then
    engine._server.get_loop().call_soon_threadsafe(engine.kill)  # type: ignore[union-attr]
    return first, last


@pytest.mark.parametrize("way", ASKS)
def test_a_request_that_is_not_suspected_is_sent_once_more(
    stage: Stage, pool: ThreadPoolExecutor, way: str
) -> None:
    """Its caller gets the answer of the next engine; the one that began last gets the error."""
    first, last = ended_under(stage, pool, ASKS[way], Script())
    error = last.exception(20)
    assert isinstance(error, EngineDied)
    assert (error.facts["requests"], error.facts["suspected"]) == (2, True)
    assert "2 requests used it, and this one began last" in error.message
    reply = first.result(60)
    assert reply.retried == 1
    assert reply.residency.cold
    if "embed" not in way:
        assert reply.content == "one two three"
        assert reply.resumed == 0
    assert stage.lease_count() == 0
    assert stage.shim.chat("a", "Hello.").retried == 0


def test_the_only_request_of_an_engine_is_not_sent_again(stage: Stage) -> None:
    """It may have ended the engine, and would end the next one, too."""
    stage.scripts["a"] = Script(die_after=0)
    with pytest.raises(EngineDied, match="This was the only request that used it") as caught:
        stage.shim.chat("a", "Hello.")
    assert (caught.value.facts["requests"], caught.value.facts["suspected"]) == (1, True)
    assert len(stage.engines) == 1


def test_an_answer_that_has_begun_is_not_asked_for_again(
    stage: Stage, pool: ThreadPoolExecutor
) -> None:
    """Its caller has pieces of it; the error says that the request is hardly the cause."""
    stage.scripts["a"] = Script(tokens=["one ", "two "], token_gate=asyncio.Event())
    with stage.shim.stream("a", "Hello.") as stream:
        while not stream.text:
            next(stream)
        (engine,) = stage.engines
        last = pool.submit(stage.shim.chat, "a", "I end engines.")
        assert wait_until(lambda: len(engine.requests) == 2)
        engine._server.get_loop().call_soon_threadsafe(engine.kill)  # type: ignore[union-attr]
        with pytest.raises(EngineDied, match="hardly the cause") as caught:
            list(stream)
    assert caught.value.facts["suspected"] is False
    assert isinstance(last.exception(20), EngineDied)
    assert stage.lease_count() == 0


def test_a_request_is_sent_anew_only_once(stage: Stage, pool: ThreadPoolExecutor) -> None:
    """The end of the next engine is its error, with the first one as the cause."""
    first, last = ended_under(stage, pool, ASKS["stream"], Script(die_after=0))
    assert isinstance(last.exception(20), EngineDied)
    error = first.exception(20)
    assert isinstance(error, EngineDied)
    assert error.facts["requests"] == 1
    assert len(stage.engines) == 2
    assert stage.lease_count() == 0


def test_a_request_that_was_sent_anew_is_one_record_on_the_trace(
    stage: Stage, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """It names the end of the engine; the suspected request is one with an error."""
    with RunTrace(directory=tmp_path) as run:
        first, last = ended_under(stage, pool, ASKS["chat"], Script())
        assert last.exception(20) is not None
        assert first.result(60).retried == 1
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    errors = [row.error for row in line.requests]
    assert sorted(errors, key=str) == ["EngineDied", None]
    assert run.trace_path is not None
    assert run.trace_path.read_text().count("keepwarm.retried_after") == 1


def test_a_request_that_is_cancelled_while_it_is_sent_anew_waits_no_more(stage: Stage) -> None:
    """The keeper keeps no request of a task that is cancelled during the next load."""
    stage.scripts["a"] = Script(tokens=["", "one"], token_gate=asyncio.Event())

    async def run() -> None:
        first = asyncio.create_task(stage.shim.achat("a", "Hello."))
        await asyncio.to_thread(
            wait_until, lambda: bool(stage.engines and stage.engines[0].requests)
        )
        engine = stage.engines[0]
        last = asyncio.create_task(stage.shim.achat("a", "I end engines."))
        await asyncio.to_thread(wait_until, lambda: len(engine.requests) == 2)
        stage.scripts["a"] = Script(load_gate=asyncio.Event())
        engine._server.get_loop().call_soon_threadsafe(engine.kill)  # type: ignore[union-attr]
        with pytest.raises(EngineDied):
            await last
        await asyncio.to_thread(wait_until, lambda: bool(stage.shim.status()["queue"]))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(run())
    assert wait_until(lambda: stage.shim.status()["queue"] == [])


@pytest.mark.parametrize("reached", [True, False])
def test_a_request_that_is_sent_anew_keeps_to_its_deadline(
    runtime_dir: Path, *, reached: bool
) -> None:
    """The keeper is told what is left of it, and that a request has reached the engine only if it has."""
    ended = EngineDied("m ended.", suspected=False, requests=2).to_wire()
    scripts = Script(die_after=0), Script()
    with (
        engine_on_a_thread(runtime_dir, scripts[0]) as dying,
        engine_on_a_thread(runtime_dir, scripts[1]) as next_one,
    ):
        if not reached:
            Path(str(dying.endpoint.socket_path)).unlink()
        grants = iter((grant(dying, "r1"), grant(next_one, "r2")))

        def says(message: Message) -> Iterator[Message]:
            if message["op"] == "lease":
                yield next(grants)
            elif message["op"] == "diagnose":
                yield {"ok": {"death": ended}}

        with (
            FakeKeeper(runtime_dir, CONFIG, says) as keeper,
            Shim(CONFIG, inline=False, runtime=runtime_dir) as shim,
        ):
            assert shim.chat("m", "Hello.", deadline_s=60).retried == 1
        heard = {op: [m for m in keeper.heard if m["op"] == op] for op in ("lease", "diagnose")}
    first, second = (message["deadline_s"] for message in heard["lease"])
    assert second < first == 60
    assert ("lease" in heard["diagnose"][0]) is reached


@pytest.mark.parametrize(("refused_for_s", "sent"), [(9.5, 2), (30.0, 1)])
def test_a_request_is_sent_anew_when_its_engine_may_start_again(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, refused_for_s: float, sent: int
) -> None:
    """It waits as long as the error says that requests are refused; where that is long it is not sent."""
    paused: list[float] = []

    async def pause(_pool: object, seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(sync_client._Pool, "pause", pause)
    ended = EngineDied("m ended.", suspected=False, retry_after_s=refused_for_s).to_wire()
    with (
        engine_on_a_thread(runtime_dir, Script(die_after=0)) as dying,
        engine_on_a_thread(runtime_dir, Script()) as next_one,
    ):
        grants = iter((grant(dying, "r1"), grant(next_one, "r2")))

        def says(message: Message) -> Iterator[Message]:
            if message["op"] == "lease":
                yield next(grants)
            elif message["op"] == "diagnose":
                yield {"ok": {"death": ended}}

        with (
            FakeKeeper(runtime_dir, CONFIG, says) as keeper,
            Shim(CONFIG, inline=False, runtime=runtime_dir) as shim,
        ):
            try:
                assert shim.chat("m", "Hello.").retried == 1
            except EngineDied as error:
                assert error.retry_after_s == refused_for_s
        leases = [m for m in keeper.heard if m["op"] == "lease"]
    assert (len(leases), paused) == (sent, [refused_for_s] * (sent - 1))


def test_a_request_whose_engine_ended_twice_is_told_how_long_others_are_refused(
    stage: Stage,
) -> None:
    """By the end of its own engine, and by the next refusal."""
    stage.scripts["a"] = Script(die_after=0)
    told = []
    for _ in range(3):
        with pytest.raises(EngineDied) as caught:
            stage.shim.chat("a", "Hello.")
        told.append(caught.value)
    assert told[0].retry_after_s is None
    assert "starts it again" in told[0].hint
    for error in told[1:]:
        assert error.retry_after_s is not None
        assert 0.0 < error.retry_after_s <= 1.0
        assert "starts it again" not in error.hint
        assert "That failed 2 times in a row" in error.hint
    assert len(stage.engines) == 2


@pytest.mark.parametrize(
    ("error", "leases", "mine", "suspected"),
    [
        (EngineDied("x ended."), ("r1",), "r1", True),
        (EngineDied("x ended."), ("r1", "r2"), "r2", True),
        (EngineDied("x ended."), ("r1", "r2"), "r1", False),
        (EngineDied("x ended."), ("r1", "r2"), None, False),
        (EngineDied("x ended."), (), "r1", False),
        (EngineTimeout("x hangs."), ("r1",), "r1", True),
        (EngineTimeout("x hangs."), ("r1", "r2"), "r2", True),
        (EngineTimeout("x hangs."), ("r1", "r2"), "r1", False),
    ],
)
def test_what_is_known_of_the_cause_of_an_end(
    error: KeepwarmError, leases: tuple[str, ...], mine: str | None, suspected: bool
) -> None:
    """The only request, or the last one to begin."""
    deaths = Deaths()
    deaths.note("e/1", error, leases)
    deaths.note("e/1", EngineDied("another account"), ())
    told = deaths.error_for("e/1", mine)
    assert told is not None
    assert told["message"].startswith(error.message)
    assert told["facts"] == {"requests": len(leases), "suspected": suspected}
    assert deaths.error_for("e/2", mine) is None


@pytest.mark.real
def test_a_real_engine_that_crashes_ends_one_request_of_two(
    tiny_models: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    """The answer that was not delivered yet comes from the next llama-server."""
    config = {
        "budget": {"device": "host", "limit": "600MiB"},
        "models": {"m": {"path": str(tiny_models["producer"]), "context": 8192, "slots": 2}},
    }
    long: dict[str, Any] = {"max_tokens": 3500, "extra": {"ignore_eos": True}}
    with Shim(config) as shim:
        shim.load("m")
        first = pool.submit(shim.chat, "m", "Hello.", **long)

        def leases() -> int:
            return len(shim.status()["engines"][0]["leases"])

        assert wait_until(lambda: leases() == 1)
        with shim.stream("m", "Hello.", **long) as stream:
            next(stream)
            os.kill(shim.status()["engines"][0]["pid"], signal.SIGSEGV)
            with pytest.raises(EngineDied, match="began last") as caught:
                list(stream)
        assert caught.value.facts["suspected"] is True
        reply = first.result(110)
        assert (reply.retried, reply.usage.completion_tokens) == (1, 3500)
